//! The widgets of a node, in the order in which their values are saved, and the values that they have.
//!
//! Saved values have no names: each belongs to the widget at its place, and places are also taken by widgets that never
//! reach the prompt. What a choice brings follows the choice, so the list depends on the values in it.

use serde_json::{Value, json};

use super::{
    definition::{Editor, InputDefinition, InputKind, NodeDefinition, is_truthy},
    text,
    ui::Node,
};

/// One widget that reaches the prompt.
#[derive(Debug, Clone)]
pub(super) struct Widget {
    /// Its name in the prompt.
    pub(super) name: String,
    /// What it holds; `None` for a choice out of nothing, which is not sent at all.
    pub(super) value: Option<Value>,
    /// How the value is put into words.
    pub(super) form: Form,
    /// Whether it gets a new value with each run.
    pub(super) randomized: bool,
}

impl Widget {
    /// Its value as it holds it.
    pub(super) fn held(&self) -> Option<Value> {
        self.value.clone().map(|value| self.form.typed(value))
    }
}

/// How a widget's value is put into words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// Everything becomes text, as in a text box.
    pub(super) as_text: bool,
    /// Comments go, and one of `{several|texts}` is taken.
    pub(super) dynamic_prompt: bool,
    /// Values of other nodes and the date are filled in.
    pub(super) file_name: bool,
    /// The value is marked as a curve.
    pub(super) curve: bool,
    /// Nothing is sent but the empty comparison.
    pub(super) compare: bool,
    /// Only the browser can make the value.
    pub(super) browser: bool,
}

/// A node's inputs as the front end has them once it has loaded the node.
#[derive(Debug, Default)]
pub(super) struct Layout<'a> {
    pub(super) widgets: Vec<Widget>,
    /// Inputs that take links only, in order; each with the full name that it has in a choice.
    pub(super) sockets: Vec<(String, &'a InputDefinition)>,
    /// What stands behind the sockets: widgets (by their place) and what choices bring, in order.
    pub(super) behind: Vec<(String, &'a InputDefinition, Option<usize>)>,
    /// The choices that were made, by name: what begins with one of these names and is not listed, is gone.
    pub(super) choices: Vec<String>,
    /// A choice whose value has no entry in the definition.
    pub(super) unknown_choice: Option<(String, Value)>,
    /// The widget to which each saved value belongs, be it as the value or as its control.
    pub(super) saved: Vec<String>,
    /// How many widgets have a default since the file has no value for them.
    pub(super) missing_values: usize,
}

/// The values that a file has for a node.
enum Saved<'a> {
    List { values: Vec<&'a Value>, next: usize },
    Named(&'a serde_json::Map<String, Value>),
}

impl<'a> Layout<'a> {
    /// Lays out the inputs of a node and reads its values.
    pub(super) fn read(node: &Node, definition: &'a NodeDefinition) -> Self {
        let mut layout = Self::default();
        let mut saved = Saved::of(node, definition);
        layout.take(&definition.inputs, "", &mut saved, definition, true);
        layout
    }

    fn take(
        &mut self,
        inputs: &'a [InputDefinition],
        prefix: &str,
        saved: &mut Saved<'_>,
        definition: &NodeDefinition,
        outermost: bool,
    ) {
        for input in inputs {
            let name = format!("{prefix}{}", input.name);
            match &input.kind {
                InputKind::Socket | InputKind::Growing if outermost => self.sockets.push((name, input)),
                InputKind::Socket | InputKind::Growing => self.behind.push((name, input, None)),
                InputKind::Widget(editor) => {
                    let value = self.value(saved, &name, input, *editor);
                    let slots = control_slots(input, *editor, outermost);
                    let randomized = slots > 0 && saved.peek().is_some_and(is_randomize);
                    saved.skip(slots);
                    self.saved.extend(std::iter::repeat_n(name.clone(), 1 + slots));
                    let form = Form::of(input, *editor, definition);
                    self.push(name, input, value, form, randomized);
                }
                InputKind::Choice(options) => {
                    let value = saved.next(&name).filter(|value| !value.is_null()).cloned();
                    let value = value.or_else(|| default_choice(input, options));
                    let key = value.as_ref().map(|value| value.as_str().map_or_else(|| value.to_string(), Into::into));
                    self.saved.push(name.clone());
                    self.push(name.clone(), input, value, Form::default(), false);
                    let Some(key) = key else { continue };
                    match options.iter().find(|(option, _)| *option == key) {
                        Some((_, brought)) => self.take(brought, &format!("{name}."), saved, definition, false),
                        None => {
                            self.unknown_choice.get_or_insert((name.clone(), Value::String(key)));
                        }
                    }
                    self.choices.push(name);
                }
            }
        }
    }

    fn push(&mut self, name: String, input: &'a InputDefinition, value: Option<Value>, form: Form, randomized: bool) {
        if !input.socketless() {
            self.behind.push((name.clone(), input, Some(self.widgets.len())));
        }
        self.widgets.push(Widget { name, value, form, randomized });
    }

    fn value(&mut self, saved: &mut Saved<'_>, name: &str, input: &InputDefinition, editor: Editor) -> Option<Value> {
        match saved.next(name) {
            Some(Value::Null) if editor == Editor::Combo => default(input, editor),
            Some(value) => Some(value.clone()),
            None => {
                self.missing_values += 1;
                default(input, editor)
            }
        }
    }
}

impl<'a> Saved<'a> {
    fn of(node: &'a Node, definition: &NodeDefinition) -> Self {
        match &node.values {
            // Packs that save by name bring their own reading for it; ComfyUI's own nodes have none.
            Some(Value::Object(named)) if !definition.is_core => Self::Named(named),
            _ => Self::List { values: without_forced(node.listed_values(), definition), next: 0 },
        }
    }

    fn next(&mut self, name: &str) -> Option<&'a Value> {
        match self {
            Self::List { values, next } => {
                *next += 1;
                values.get(*next - 1).copied()
            }
            Self::Named(named) => named.get(name),
        }
    }

    /// What comes next, where values are listed.
    fn peek(&self) -> Option<&'a Value> {
        match self {
            Self::List { values, next } => values.get(*next).copied(),
            Self::Named(_) => None,
        }
    }

    fn skip(&mut self, slots: usize) {
        if let Self::List { next, .. } = self {
            *next += slots;
        }
    }
}

impl Form {
    fn of(input: &InputDefinition, editor: Editor, definition: &NodeDefinition) -> Self {
        Self {
            as_text: editor == Editor::Text { multiline: true },
            dynamic_prompt: matches!(editor, Editor::Text { .. }) && input.flag("dynamicPrompts"),
            file_name: input.name == "filename_prefix" && definition.output_node && definition.is_core,
            curve: editor == Editor::Curve,
            compare: editor == Editor::Compare,
            browser: editor == Editor::Browser || input.option("remote").is_some() && input.flag("image_upload"),
        }
    }
}

impl Form {
    /// A value as the widget holds it once it is set there.
    pub(super) fn typed(self, value: Value) -> Value {
        if self.as_text { Value::String(text::as_text(&value)) } else { value }
    }

    /// A value in the words that the server reads.
    pub(super) fn sent(self, value: Value) -> Value {
        if self.compare {
            json!({"__value__": ["", ""]})
        } else if self.curve {
            json!({"__type__": "CURVE", "__value__": value})
        } else if value.is_array() {
            // Else the server would take it for a link.
            json!({"__value__": value})
        } else {
            value
        }
    }
}

/// Whether this is the control's word for a new value with each run.
pub(super) fn is_randomize(control: &Value) -> bool {
    control.as_str() == Some("randomize")
}

/// How many saved values belong to the control of what happens to a value after a run. It is there when the definition
/// asks for it, and for the two names of seeds; a list of choices has a filter besides.
fn control_slots(input: &InputDefinition, editor: Editor, outermost: bool) -> usize {
    let is_seed = outermost && editor == Editor::Number && input.type_name == "INT";
    let is_seed = is_seed && matches!(input.name.as_str(), "seed" | "noise_seed");
    match (input.option("control_after_generate"), editor) {
        (Some(option), Editor::Combo) if is_truthy(option) => 2,
        (Some(option), _) => usize::from(is_truthy(option)),
        (None, _) => usize::from(is_seed),
    }
}

/// Files from when inputs that take links only still had a value: those values are left out. They are recognised by the
/// length of the list, as there is no other trace of them.
fn without_forced<'a>(values: &'a [Value], definition: &NodeDefinition) -> Vec<&'a Value> {
    let mut forced = Vec::new();
    for input in &definition.inputs {
        let is_forced = input.flag("forceInput");
        if is_forced || matches!(input.kind, InputKind::Widget(_) | InputKind::Choice(_)) {
            forced.push(is_forced);
            forced.extend(input.flag("control_after_generate").then_some(false));
        }
    }
    let has_them = forced.contains(&true) && forced.len() == values.len();
    values.iter().enumerate().filter(|(at, _)| !(has_them && forced[*at])).map(|(_, value)| value).collect()
}

/// What a widget holds before anybody has touched it.
fn default(input: &InputDefinition, editor: Editor) -> Option<Value> {
    if let Some(value) = input.option("default").filter(|value| !value.is_null()) {
        return Some(value.clone());
    }
    match editor {
        Editor::Number => Some(json!(0)),
        Editor::Text { .. } => Some(json!("")),
        Editor::Switch => Some(json!(false)),
        Editor::Combo => input.choices.first().cloned(),
        Editor::Special | Editor::Curve | Editor::Compare | Editor::Browser => None,
    }
}

fn default_choice(input: &InputDefinition, options: &[(String, Vec<InputDefinition>)]) -> Option<Value> {
    let default = input.option("default").filter(|value| !value.is_null()).cloned();
    default.or_else(|| options.first().map(|(key, _)| Value::String(key.clone())))
}

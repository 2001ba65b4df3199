use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::*;

const BOXES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    Reserve(usize),
    LineUp(usize),
    GoOn(usize),
    /// The seat at this place of those that are there, modulo their number, ends: cancelled in line or over.
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..BOXES.len()).prop_map(Step::Reserve),
        1 => (0..BOXES.len()).prop_map(Step::LineUp),
        1 => (0..BOXES.len()).prop_map(Step::GoOn),
        5 => any::<usize>().prop_map(Step::Drop),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (1..5_usize, 1..4_usize, 0..6_usize, 0..9_usize).prop_map(
        |(max_running, max_running_per_box, max_waiting, most_of_one)| Limits {
            max_running,
            max_running_per_box,
            max_waiting,
            max_active_per_caller: NonZeroUsize::new(most_of_one),
        },
    )
}

/// What the rules look at.
struct Seen {
    running: BTreeSet<SeatNumber>,
    waiting: BTreeSet<SeatNumber>,
}

fn see(seats: &[Seat]) -> Seen {
    let numbers = |has_place: bool| {
        seats.iter().filter(|seat| seat.has_place() == has_place).map(Seat::number).collect::<BTreeSet<_>>()
    };
    Seen { running: numbers(true), waiting: numbers(false) }
}

fn box_of(seats: &[Seat], number: SeatNumber) -> &BoxName {
    &seats.iter().find(|seat| seat.number == number).expect("a seat that is there").box_name
}

/// Whether this seat's box could take one more; the overall limit apart.
fn box_has_room(seats: &[Seat], seen: &Seen, number: SeatNumber, limits: &Limits) -> bool {
    let on_box = seen.running.iter().filter(|other| box_of(seats, **other) == box_of(seats, number));
    on_box.count() < limits.max_running_per_box
}

/// One of those who ask; the others go unnamed, as in state files from before callers were named.
fn caller() -> Option<Caller> {
    Some(Caller::new("somebody"))
}

fn take(line: &Line, seats: &mut Vec<Seat>, step: &Step) {
    let name = |index: &usize| BoxName::unresolved(BOXES[*index]);
    let most_of_one = line.limits.max_active_per_caller.map_or(usize::MAX, NonZeroUsize::get);
    match step {
        Step::Reserve(index) => {
            let before = see(seats).waiting.len();
            let active = seats.iter().filter(|seat| seat.caller == caller()).count();
            match line.reserve(name(index), caller()) {
                Ok(seat) => {
                    seats.push(seat);
                    assert!(active < most_of_one);
                }
                Err(Full::Waiting(waiting)) => assert!(waiting == before && before >= line.limits.max_waiting),
                Err(Full::Caller(counted)) => assert!(counted == active && active >= most_of_one),
            }
            assert!(see(seats).waiting.len() <= before.max(line.limits.max_waiting));
        }
        Step::LineUp(index) => seats.push(line.line_up(name(index), None)),
        Step::GoOn(index) => {
            seats.push(line.go_on(name(index), caller()));
            assert!(seats.last().is_some_and(Seat::has_place));
        }
        Step::Drop(_) if seats.is_empty() => {}
        Step::Drop(index) => drop(seats.remove(index % seats.len())),
    }
}

fn check(line: &Line, seats: &[Seat], before: &Seen, step: &Step) {
    let (limits, seen) = (&line.limits, see(seats));
    let came_up: Vec<SeatNumber> = seen.running.difference(&before.running).copied().collect();
    if !matches!(step, Step::GoOn(_)) {
        assert!(came_up.is_empty() || seen.running.len() <= limits.max_running);
        for number in &came_up {
            let on_box = seen.running.iter().filter(|other| box_of(seats, **other) == box_of(seats, *number));
            assert!(on_box.count() <= limits.max_running_per_box);
            let passed_over = seen.waiting.range(..number);
            assert!(passed_over.into_iter().all(|other| !box_has_room(seats, &seen, *other, limits)));
        }
    }
    for number in &seen.waiting {
        assert!(seen.running.len() >= limits.max_running || !box_has_room(seats, &seen, *number, limits), "idle room");
        let ahead = seen.waiting.range(..number);
        let same_box = ahead.clone().filter(|other| box_of(seats, **other) == box_of(seats, *number)).count();
        let ahead = if seen.running.len() >= limits.max_running { ahead.count() } else { same_box };
        assert_eq!(line.position(*number), Some(ahead + 1));
    }
    assert!(seen.running.iter().all(|number| line.position(*number).is_none()));
}

proptest! {
    /// Never over a limit, no room unused, the first that can go in goes in, and everybody comes up in the end.
    #[test]
    fn whatever_comes_and_goes_the_rules_hold(limits in limits(), steps in vec(step(), 0..120)) {
        let line = Line::new(limits);
        let mut seats = Vec::new();
        for step in &steps {
            let before = see(&seats);
            take(&line, &mut seats, step);
            check(&line, &seats, &before, step);
        }
        while !seats.is_empty() {
            let before = see(&seats);
            let over = seats.iter().position(Seat::has_place).expect("somebody runs as long as anybody waits");
            take(&line, &mut seats, &Step::Drop(over));
            check(&line, &seats, &before, &Step::Drop(over));
        }
        let order = line.lock();
        prop_assert!(order.running == 0 && order.running_on.is_empty() && order.waiting.is_empty() && order.active_of.is_empty());
    }
}

#[tokio::test]
async fn a_turn_resolves_when_the_place_before_it_is_free() {
    let limits = Limits { max_running: 1, max_running_per_box: 1, max_waiting: 2, max_active_per_caller: None };
    let line = Line::new(limits);
    let (first, second) = (line.line_up(BoxName::unresolved("a"), None), line.line_up(BoxName::unresolved("b"), None));
    first.turn().await;
    {
        let turn = second.turn();
        tokio::pin!(turn);
        assert!(futures_util::poll!(&mut turn).is_pending());
    }
    drop(first);
    second.turn().await;
    // Asked again, it still says so.
    second.turn().await;
}

#[test]
fn a_refusal_says_how_many_wait() {
    let full = |waiting| Full::Waiting(waiting).to_string();
    assert_eq!(full(7), "Too many workflows are waiting (7); try again later");
    assert!(!full(0).contains('0'));
}

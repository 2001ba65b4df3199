//! Pictures are made here, by the byte.

use std::io::Write;

use flate2::{Compression, write::ZlibEncoder};
use serde_json::json;

use super::*;

const API: &str = r#"{"1": {"class_type": "A", "inputs": {}}}"#;
const UI: &str = r#"{"nodes": [], "links": []}"#;

fn png(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut picture = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, body) in chunks {
        picture.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        picture.extend(*kind);
        picture.extend(body);
        picture.extend([0; 4]);
    }
    picture
}

fn packed(text: &str) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn chunk(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A WebP file with an EXIF block of one directory, as Pillow writes it.
fn webp(texts: &[(u16, &str)], prefix: &[u8]) -> Vec<u8> {
    let mut tiff = b"II\x2a\0\x08\0\0\0".to_vec();
    tiff.extend(u16::try_from(texts.len()).unwrap().to_le_bytes());
    let mut at = 8 + 2 + texts.len() * 12 + 4;
    let mut data = Vec::new();
    for (tag, text) in texts {
        tiff.extend(tag.to_le_bytes());
        tiff.extend(2_u16.to_le_bytes());
        tiff.extend(u32::try_from(text.len() + 1).unwrap().to_le_bytes());
        tiff.extend(u32::try_from(at).unwrap().to_le_bytes());
        at += text.len() + 1;
        data.extend(text.as_bytes());
        data.push(0);
    }
    tiff.extend([0; 4]);
    tiff.extend(data);
    let exif = [prefix, &tiff].concat();
    let mut body = b"WEBPVP8X\x0a\0\0\0\x08\0\0\0\0\0\0\0\0\0".to_vec();
    body.extend(b"EXIF");
    body.extend(u32::try_from(exif.len()).unwrap().to_le_bytes());
    body.extend(&exif);
    if exif.len() % 2 == 1 {
        body.push(0);
    }
    [b"RIFF", &u32::try_from(body.len()).unwrap().to_le_bytes()[..], &body].concat()
}

fn extracted(content: &[u8]) -> (WorkflowFormat, bool) {
    let found = extract(content).unwrap();
    (found.format, matches!(found.workflow, Workflow::Api(_)))
}

#[test]
fn json_is_told_apart_by_what_is_in_it() {
    assert_eq!(extracted(API.as_bytes()), (WorkflowFormat::Api, true));
    assert_eq!(extracted(UI.as_bytes()), (WorkflowFormat::Ui, false));
    for (wrapped, is_api) in [
        (json!({"prompt": {"1": {"class_type": "A"}}, "client_id": "x"}), true),
        (json!({"workflow": {"nodes": [], "links": []}, "prompt": {"1": {"class_type": "A"}}}), true),
        (json!({"workflow": {"nodes": []}, "prompt": "a cat"}), false),
        (json!({"workflow": UI}), false),
        (json!({"extra_data": {"extra_pnginfo": {"workflow": {"nodes": [], "links": []}}}}), false),
        (json!({"metadata": {"prompt": API}}), true),
    ] {
        let found = extracted(wrapped.to_string().as_bytes());
        assert_eq!(found.1, is_api, "{wrapped}");
    }
}

#[test]
fn what_is_no_workflow_is_refused_with_the_reason() {
    let refusal = |content: &[u8]| extract(content).unwrap_err().to_string();
    assert_eq!(refusal(b" \n"), "is empty");
    assert!(refusal(b"{").starts_with("is not JSON: "));
    assert_eq!(refusal("[".repeat(100_000).as_bytes()), "is nested more than 128 levels deep");
    for other in [b"\xff\xd8\xff\xe0 JFIF".as_slice(), b"PK\x03\x04", b"\0\0\0 ftypisom", b"hello"] {
        assert_eq!(refusal(other), "is neither JSON nor a PNG or WebP picture");
    }
    assert!(refusal(b"[]").starts_with("holds no workflow: "));
    assert!(refusal(b"{\"a\": 1}").starts_with("holds no workflow: "));
    assert!(refusal(&png(&[(b"IDAT", vec![1, 2, 3])])).starts_with("is a picture without a workflow"));
    assert!(refusal(b"RIFF\x04\0\0\0WEBP").starts_with("is a"));
}

#[test]
fn every_kind_of_text_in_a_png_is_read_wherever_it_stands() {
    let itxt = |packed_flag: u8, text: &[u8]| chunk(&[b"workflow\0", &[packed_flag, 0], b"\0\0", text]);
    let picture = (b"IDAT", vec![0; 9]);
    for chunks in [
        vec![(b"tEXt", chunk(&[b"workflow\0", UI.as_bytes()])), picture.clone()],
        vec![picture.clone(), (b"tEXt", chunk(&[b"workflow\0", UI.as_bytes()]))],
        vec![(b"zTXt", chunk(&[b"workflow\0\0", &packed(UI)])), picture.clone()],
        vec![(b"iTXt", itxt(0, UI.as_bytes())), picture.clone()],
        vec![(b"iTXt", itxt(1, &packed(UI))), picture.clone()],
        vec![picture.clone(), (b"comf", chunk(&[b"workflow\0", UI.as_bytes()]))],
    ] {
        assert_eq!(extracted(&png(&chunks)), (WorkflowFormat::Png, false));
    }
}

#[test]
fn of_two_forms_in_a_picture_the_api_form_wins() {
    let workflow = (b"tEXt", chunk(&[b"workflow\0", UI.as_bytes()]));
    let prompt = (b"tEXt", chunk(&[b"prompt\0", API.as_bytes()]));
    assert_eq!(extracted(&png(&[workflow.clone(), prompt])), (WorkflowFormat::Png, true));
    // Other programs write a prompt too, which is just words.
    let words = (b"tEXt", b"prompt\0a cat".to_vec());
    assert_eq!(extracted(&png(&[words, workflow])), (WorkflowFormat::Png, false));
    let both = [(0x0110, &*format!("prompt:{API}")), (0x010f, &*format!("workflow:{UI}"))];
    assert_eq!(extracted(&webp(&both, b"")), (WorkflowFormat::Webp, true));
}

#[test]
fn the_fields_of_a_webp_are_read_with_and_without_the_old_prefix() {
    for prefix in [&b""[..], b"Exif\0\0"] {
        let picture = webp(&[(0x010f, &format!("Workflow:{UI}"))], prefix);
        assert_eq!(extracted(&picture), (WorkflowFormat::Webp, false), "{prefix:?}");
    }
}

#[test]
fn a_text_that_unpacks_to_far_too_much_is_refused() {
    let bomb = packed(&" ".repeat(MAX_TEXT_BYTES + 1));
    let error = extract(&png(&[(b"zTXt", chunk(&[b"workflow\0\0", &bomb]))])).unwrap_err();
    assert!(matches!(error, ExtractError::TooLong));
}

#[test]
fn a_picture_that_is_cut_anywhere_is_refused_and_never_a_panic() {
    let whole = png(&[(b"zTXt", chunk(&[b"workflow\0\0", &packed(UI)])), (b"IEND", Vec::new())]);
    let webp = webp(&[(0x010f, &format!("workflow:{UI}"))], b"");
    for content in [whole, webp] {
        // The last bytes are a checksum and an end mark, without which all is there.
        for end in 0..content.len() - 16 {
            assert!(extract(&content[..end]).is_err(), "cut at {end}");
        }
        assert!(extract(&content).is_ok());
    }
}

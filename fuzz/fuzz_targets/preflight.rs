#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| comfy_remote::fuzz::feed("preflight", input));

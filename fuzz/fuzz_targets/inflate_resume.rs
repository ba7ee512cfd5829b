#![no_main]

#[path = "../bodies/inflate_resume.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mongomux_fuzz::pool::check(data));

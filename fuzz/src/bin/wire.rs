//! libFuzzer before [`rebec_fuzz::wire`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::wire::seeds), |data: &[u8]| rebec_fuzz::wire::run(data));

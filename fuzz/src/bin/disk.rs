//! libFuzzer before [`rebec_fuzz::disk`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::disk::seeds), |data: &[u8]| rebec_fuzz::disk::run(data));

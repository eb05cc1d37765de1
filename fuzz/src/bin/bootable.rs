//! libFuzzer before [`rebec_fuzz::bootable`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: rebec_fuzz::seeds::write_if_asked(rebec_fuzz::bootable::seeds), |data: &[u8]| rebec_fuzz::bootable::run(data));

//! Unified kernel images: one EFI program whose sections are kernel, initial RAM disk and command line
//! (uapi-group.org, "Unified Kernel Image").

use object::read::pe::PeFile64;

use crate::text;

/// What is inside of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts {
    pub kernel: Vec<u8>,
    pub initramfs: Vec<u8>,
    pub cmdline: String,
}

/// The parts of an image; none, if it is no such image.
pub fn parse(bytes: &[u8]) -> Option<Parts> {
    let file = PeFile64::parse(bytes).ok()?;
    let sections = file.section_table();
    let section = |name: &[u8]| {
        let found = sections.iter().find(|section| section.raw_name() == name)?;
        found.pe_data(bytes).ok()
    };
    let of_text = |name: &[u8]| section(name).map(|bytes| text(bytes.to_vec()).trim_matches(['\0', '\n', ' ']).to_owned());
    Some(Parts {
        kernel: section(b".linux")?.to_vec(),
        initramfs: section(b".initrd").unwrap_or_default().to_vec(),
        cmdline: of_text(b".cmdline").unwrap_or_default(),
    })
}

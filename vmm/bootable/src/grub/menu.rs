//! From a menu to one entry: what `default` names, through submenus, and what starts from there.

use super::{
    run::{Action, Grub, Item},
    script::{self, variables},
};
use crate::{Entry, volumes::Volume};

/// Submenus inside of each other.
const DEPTH_MAX: usize = 8;

/// Runs a configuration; what is wrong with it is a clause.
pub fn read<'a>(volumes: &'a [Volume], volume: usize, folder: &str, text: &str) -> Result<Grub<'a>, String> {
    let script = script::parse(text).map_err(str::to_owned)?;
    let mut grub = Grub::new(volumes, volume, folder);
    grub.run(&script);
    Ok(grub)
}

/// The entry that GRUB starts by itself, or the next that has a kernel.
pub fn choose(grub: &mut Grub<'_>) -> Option<Entry> {
    // A configuration may name a kernel without a menu.
    if let Some(entry) = grub.loaded.take() {
        return Some(Entry { title: "its only entry".to_owned(), ..entry });
    }
    let default = grub.value("default").to_owned();
    let menu = std::mem::take(&mut grub.menu);
    let chosen = follow(grub, &menu, &default, 0);
    chosen.or_else(|| menu.iter().find_map(|item| start(grub, item, "", 0)))
}

fn follow(grub: &mut Grub<'_>, menu: &[Item], path: &str, depth: usize) -> Option<Entry> {
    // A title may have the sign that divides a path.
    let whole = menu.iter().find(|item| item.id == path || item.title == path);
    let (first, rest) = path.split_once('>').unwrap_or((path, ""));
    let named = || menu.iter().find(|item| item.id == first || item.title == first);
    let numbered = || menu.get(first.parse::<usize>().ok()?);
    match whole.filter(|_| !path.is_empty()) {
        Some(item) => start(grub, item, "", depth),
        None => start(grub, named().filter(|_| !first.is_empty()).or_else(numbered).or(menu.first())?, rest, depth),
    }
}

fn start(grub: &mut Grub<'_>, item: &Item, rest: &str, depth: usize) -> Option<Entry> {
    match &item.action {
        Action::Words(volume, words) => {
            let mut entry = words.entry(*volume);
            // GRUB knows variables in them.
            for text in [&mut entry.cmdline, &mut entry.kernel.1].into_iter().chain(entry.initramfs.iter_mut().map(|(_, path)| path)) {
                *text = grub.whole(&variables(text)).trim().to_owned();
            }
            entry.initramfs.retain(|(_, path)| !path.is_empty());
            Some(entry)
        }
        Action::Script(body) => {
            grub.loaded = None;
            grub.run(body);
            let entry = grub.loaded.take()?;
            grub.volumes.get(entry.kernel.0)?.has(&entry.kernel.1).then(|| Entry { title: item.title.clone(), ..entry })
        }
        Action::Menu(body) if depth < DEPTH_MAX => {
            grub.menu.clear();
            grub.run(body);
            let inner = std::mem::take(&mut grub.menu);
            follow(grub, &inner, rest, depth + 1)
        }
        Action::Menu(_) => None,
    }
}

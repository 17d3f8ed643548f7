//! From a menu's items to entries that can be booted, the default one first.

use super::interpreter::{Interpreter, Item};
use super::{GrubError, GrubMenu, MAX_DEPTH};
use crate::volume::{Entry, Origin};

/// An entry with its place in the menu.
struct Placed {
    /// Position, identifier and title of the entry and of all submenus around it.
    path: Vec<Place>,
    entry: Entry,
}

#[derive(Clone)]
struct Place {
    position: usize,
    id: String,
    title: String,
}

impl Place {
    /// Whether a component of `default` means this: a number, an identifier or a title.
    fn is(&self, component: &str) -> bool {
        component == self.id || component == self.title || component.parse() == Ok(self.position)
    }
}

impl Interpreter<'_> {
    /// The menu that was made.
    pub(super) fn into_menu(mut self) -> Result<GrubMenu, GrubError> {
        let mut menu = GrubMenu::default();
        let mut entries = Vec::new();
        let items = std::mem::take(&mut self.items);
        self.collect(items, &[], &mut entries, &mut menu.unusable)?;
        let default = components(self.variables.get("default"));
        let chosen = entries
            .iter()
            .position(|placed| is_default(placed, &default));
        if let Some(chosen) = chosen {
            let placed = entries.remove(chosen);
            entries.insert(0, placed);
        }
        menu.entries = entries.into_iter().map(|placed| placed.entry).collect();
        Ok(menu)
    }

    fn collect(
        &mut self,
        items: Vec<Item>,
        around: &[Place],
        entries: &mut Vec<Placed>,
        unusable: &mut Vec<String>,
    ) -> Result<(), GrubError> {
        if around.len() > MAX_DEPTH {
            return Err(GrubError::TooDeep);
        }
        for (position, item) in items.into_iter().enumerate() {
            let (id, title) = match &item {
                Item::Block { id, title, .. } => (id.clone(), title.clone()),
                Item::Ready(entry) => (entry.id.clone(), entry.title.clone()),
            };
            let place = Place {
                position,
                id: id.clone(),
                title: title.clone(),
            };
            let path = [around, &[place]].concat();
            let body = match item {
                Item::Ready(entry) => {
                    entries.push(Placed { path, entry });
                    continue;
                }
                Item::Block { body, .. } => body,
            };
            let (loaded, below) = self.run_item(&id, &body)?;
            if !below.is_empty() {
                self.collect(below, &path, entries, unusable)?;
                continue;
            }
            match (loaded.kernel, loaded.refused) {
                (Some(kernel), None) => entries.push(Placed {
                    path,
                    entry: Entry {
                        origin: Origin::Grub,
                        id,
                        title,
                        kernel,
                        initrds: loaded.initrds,
                        args: loaded.args,
                    },
                }),
                (_, Some(refused)) => unusable.push(format!("entry \"{title}\" {refused}")),
                (None, None) => unusable.push(format!("entry \"{title}\" loads no kernel")),
            }
        }
        Ok(())
    }
}

/// The components of `default`: they are joined by `>`, which is doubled in titles.
fn components(default: &str) -> Vec<String> {
    let parts = default.replace(">>", "\0");
    let parts = parts.split('>').map(|part| part.replace('\0', ">"));
    parts.map(|part| part.trim().to_owned()).collect()
}

fn is_default(placed: &Placed, default: &[String]) -> bool {
    let matches = |path: &[Place]| {
        path.len() >= default.len() && path.iter().zip(default).all(|(place, part)| place.is(part))
    };
    match default {
        [] => false,
        // A bare identifier or title means an entry wherever it is, as long as it is one: numbers count
        // in the first menu.
        [only] if only.parse::<usize>().is_err() => {
            let last = placed.path.last();
            last.is_some_and(|place| place.id == *only || place.title == *only)
                || matches(&placed.path)
        }
        _ => matches(&placed.path),
    }
}

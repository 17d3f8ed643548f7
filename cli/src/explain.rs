//! `podvisor explain`: what annotations there are, and all about one.

use std::fmt::{self, Write as _};

use anyhow::{Result, bail};
use podvisor_annotations::{DEFINITIONS, Definition, Field, Key, Kind};

/// Longest value of the table's column; what is longer is explained by key.
const VALUE_WIDTH: usize = 34;

/// A table of all keys.
pub fn all() -> String {
    let mut text = format!(
        "{:<14} {:<VALUE_WIDTH$} {:<12} MEANING\n",
        "KEY", "VALUE", "PODS"
    );
    for definition in &DEFINITIONS {
        text.push_str(&format!(
            "{:<14} {:<VALUE_WIDTH$} {:<12} {}\n",
            definition.key.name(),
            shorten(&in_short(definition.kind)),
            definition.applies.as_str(),
            definition.meaning,
        ));
    }
    text
}

/// All about the key of this name.
///
/// # Errors
/// There is none; the error has the nearest.
pub fn one(name: &str) -> Result<String> {
    let Some(key) = Key::named(name) else {
        let nearest = Key::nearest(name);
        if nearest.is_empty() {
            bail!("there is no annotation {name:?}; podvisor explain lists them");
        }
        let nearest: Vec<&str> = nearest.into_iter().map(Key::name).collect();
        bail!(
            "there is no annotation {name:?}; is it meant to be {}?",
            nearest.join(" or ")
        );
    };
    let mut text = String::new();
    describe(&mut text, key.definition())?;
    Ok(text)
}

fn describe(text: &mut String, definition: &Definition) -> fmt::Result {
    let Definition {
        key,
        kind,
        default,
        meaning,
        applies,
        ..
    } = definition;
    writeln!(text, "{key}\n\n{meaning}\n")?;
    writeln!(text, "value:       {}", in_short(*kind))?;
    writeln!(text, "without it:  {default}")?;
    writeln!(text, "pods:        {}", applies.as_str())?;
    if let Some(other) = definition.at_least {
        writeln!(text, "at least:    the value of {other}")?;
    }
    details(text, *kind, "")?;
    writeln!(text, "\nfor example:")?;
    for example in definition.examples {
        writeln!(text, "  {key}: {}", yaml(example))?;
    }
    Ok(())
}

/// Words and fields, each on a line of its own.
fn details(text: &mut String, kind: Kind, path: &str) -> fmt::Result {
    match kind {
        Kind::Choice(words) => {
            writeln!(text)?;
            let width = words.iter().map(|word| word.word.len()).max().unwrap_or(0);
            for word in words {
                writeln!(text, "  {:<width$}  {}", word.word, word.meaning)?;
            }
            Ok(())
        }
        Kind::List { of, .. } => details(text, *of, path),
        Kind::Map(fields) => {
            if path.is_empty() {
                writeln!(text)?;
            }
            fields
                .iter()
                .try_for_each(|field| describe_field(text, field, path))
        }
        Kind::Number { .. }
        | Kind::Quantity { .. }
        | Kind::Switch
        | Kind::Words(_)
        | Kind::Text { .. } => Ok(()),
    }
}

fn describe_field(text: &mut String, field: &Field, path: &str) -> fmt::Result {
    let name = format!("{path}{}", field.name);
    if matches!(field.kind, Kind::Map(_)) {
        return details(text, field.kind, &format!("{name}."));
    }
    let required = if field.required { " (required)" } else { "" };
    writeln!(text, "  {name}{required}: {}", field.meaning)?;
    writeln!(text, "      {}", field.kind)?;
    if let Kind::Choice(words) = field.kind {
        for word in words {
            writeln!(text, "      {}: {}", word.word, word.meaning)?;
        }
    }
    Ok(())
}

/// A form without its parts.
fn in_short(kind: Kind) -> String {
    match kind {
        Kind::List { of, max } => match of {
            Kind::Map(_) => format!("YAML list of at most {max} maps"),
            of => format!("YAML list of at most {max}: {of}"),
        },
        Kind::Map(_) => "YAML map".to_owned(),
        other => other.to_string(),
    }
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= VALUE_WIDTH {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(VALUE_WIDTH - 1).collect();
    short.push('…');
    short
}

/// A value as it stands in a manifest, below two spaces.
fn yaml(value: &str) -> String {
    if value.contains('\n') {
        let lines: Vec<String> = value.lines().map(|line| format!("    {line}")).collect();
        return format!("|\n{}", lines.join("\n"));
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_every_key() {
        let table = all();
        for key in Key::ALL {
            let line = table
                .lines()
                .find(|line| line.split(' ').next() == Some(key.name()));
            assert!(
                line.is_some_and(|line| line.ends_with(key.definition().meaning)),
                "{key}"
            );
        }
    }

    #[test]
    fn a_key_is_explained_with_value_default_words_and_fields() {
        let text = one("on-reboot").unwrap();
        for part in [
            "podvisor.io/on-reboot",
            "stop, restart",
            "without it:  restart",
            "machine pods",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let text = one("podvisor.io/disks").unwrap();
        for part in [
            "path (required): ",
            "1 to 16",
            "unsafe: through the host",
            "    - path: /data",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(one("smbios").unwrap().contains("  system.uuid: "));
        assert!(
            one("max-cpus")
                .unwrap()
                .contains("at least:    the value of podvisor.io/cpus")
        );
    }

    #[test]
    fn examples_are_yaml_of_their_values() {
        for key in Key::ALL {
            for example in key.definition().examples {
                let manifest = format!("  {key}: {}\n", yaml(example));
                let read: std::collections::BTreeMap<String, String> =
                    serde_saphyr::from_str(&manifest).unwrap();
                assert_eq!(read[&key.to_string()].trim_end(), example.trim_end());
            }
        }
    }

    #[test]
    fn an_unknown_key_has_the_nearest_names() {
        let error = one("hugepage").unwrap_err().to_string();
        assert!(error.contains("meant to be hugepages?"), "{error}");
        assert!(
            one("zzzzzzzz")
                .unwrap_err()
                .to_string()
                .contains("podvisor explain lists them")
        );
    }
}

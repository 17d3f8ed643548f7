//! `docs/annotations.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::{DEFINITIONS, Definition, Field, Key, Kind};

const HEAD: &str = "# Annotations

<!-- Made from the definition in annotations/src by its tests: change it there. -->

What a pod can say of its machine, in `metadata.annotations`. A key in the prefix `podvisor.io/` that is not here, a value that is
not allowed, or keys that do not go together fail the pod with the key's name, what was given and what is allowed. `podvisor explain KEY`
says the same on a node; [annotations.schema.json](annotations.schema.json) is for editors, and
[annotation-policy.yaml](../runtimeclass/annotation-policy.yaml) lets the API server refuse such pods before they are scheduled.
Which keys a node allows, and how far: [configuration.md](configuration.md). containerd must pass them on:
`pod_annotations = [\"podvisor.io/*\"]`.

| key (`podvisor.io/`) | value | without it | pods | meaning |
|---|---|---|---|---|
";

#[test]
fn the_documentation_is_what_the_definition_says() {
    super::check("docs/annotations.md", &text().unwrap());
}

fn text() -> Result<String, std::fmt::Error> {
    let mut text = HEAD.to_owned();
    for definition in &DEFINITIONS {
        row(&mut text, definition)?;
    }
    for definition in &DEFINITIONS {
        section(&mut text, definition)?;
    }
    Ok(text)
}

fn row(text: &mut String, definition: &Definition) -> std::fmt::Result {
    let name = definition.key.name();
    let value = match definition.kind {
        Kind::List { .. } | Kind::Map(_) => {
            let form = if matches!(definition.kind, Kind::Map(_)) {
                "map"
            } else {
                "list"
            };
            format!("YAML {form}, [below](#{name})")
        }
        kind => kind.to_string(),
    };
    writeln!(
        text,
        "| `{name}` | {} | {} | {} | {} |",
        cell(&value),
        cell(definition.default),
        definition.applies.as_str(),
        cell(definition.meaning),
    )
}

/// What does not fit a row.
fn section(text: &mut String, definition: &Definition) -> std::fmt::Result {
    let kind = definition.kind;
    let is_plain = matches!(
        kind,
        Kind::Number { .. } | Kind::Quantity { .. } | Kind::Words(_)
    );
    if is_plain {
        return Ok(());
    }
    writeln!(text, "\n## {}\n", definition.key.name())?;
    writeln!(text, "{}.\n", sentence(definition.meaning))?;
    if let Some(entry) = entry(text, kind)? {
        fields(text, "", entry)?;
        writeln!(text)?;
    }
    for example in definition.examples {
        writeln!(text, "```yaml\n{}\n```", manifest(definition.key, example))?;
    }
    Ok(())
}

/// A value as it stands in a pod's manifest.
fn manifest(key: Key, value: &str) -> String {
    let value = match value.contains('\n') {
        true => format!("|\n      {}", value.trim_end().replace('\n', "\n      ")),
        false => quote(value),
    };
    format!("metadata:\n  annotations:\n    {key}: {value}")
}

/// Describes a value; yields the fields to describe next.
fn entry(text: &mut String, kind: Kind) -> Result<Option<&'static [Field]>, std::fmt::Error> {
    match kind {
        Kind::Choice(words) => {
            for word in words {
                writeln!(text, "* `{}`: {}", word.word, word.meaning)?;
            }
            writeln!(text)?;
            Ok(None)
        }
        Kind::List {
            of: Kind::Map(fields),
            max,
        } => {
            writeln!(text, "A list of at most {max} of\n")?;
            Ok(Some(fields))
        }
        Kind::Map(fields) => Ok(Some(fields)),
        other => {
            writeln!(text, "Allowed: {other}.\n")?;
            Ok(None)
        }
    }
}

fn fields(text: &mut String, path: &str, fields: &[Field]) -> std::fmt::Result {
    if path.is_empty() {
        writeln!(text, "| field | value | meaning |\n|---|---|---|")?;
    }
    for field in fields {
        let path = format!("{path}{}", field.name);
        if let Kind::Map(inner) = field.kind {
            self::fields(text, &format!("{path}."), inner)?;
            continue;
        }
        let required = if field.required { " (required)" } else { "" };
        writeln!(
            text,
            "| `{path}`{required} | {} | {} |",
            cell(&field.kind.to_string()),
            cell(&meaning(field)),
        )?;
    }
    Ok(())
}

/// A field's meaning with those of its words.
fn meaning(field: &Field) -> String {
    let Kind::Choice(words) = field.kind else {
        return field.meaning.to_owned();
    };
    let words: Vec<String> = words
        .iter()
        .map(|word| format!("`{}`: {}", word.word, word.meaning))
        .collect();
    format!("{}. {}", field.meaning, words.join("; "))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    // A name keeps its first letter.
    match characters.next() {
        Some(first) if !text.starts_with("vCPU") => {
            first.to_uppercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

/// YAML would not take every value for a text.
fn quote(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

#[test]
fn examples_in_the_documentation_are_yaml_of_the_value() {
    type Manifest = BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>;
    for key in Key::ALL {
        for example in key.definition().examples {
            let text = manifest(key, example);
            let read: Manifest = serde_saphyr::from_str(&text).unwrap();
            let value = &read["metadata"]["annotations"][&key.to_string()];
            assert_eq!(value.trim_end(), example.trim_end(), "{text}");
        }
    }
}

//! `docs/annotations.schema.json`: for editors, of the annotations of a pod's metadata.

use crate::{DEFINITIONS, Definition, Field, Key, Kind, PREFIX};
use serde_json::{Map, Value, json};

#[test]
fn the_schema_is_what_the_definition_says() {
    let text = serde_json::to_string_pretty(&schema()).unwrap();
    super::check("docs/annotations.schema.json", &format!("{text}\n"));
}

fn schema() -> Value {
    let names: Vec<&str> = Key::ALL.iter().map(|key| key.name()).collect();
    let prefix = PREFIX.replace('.', "\\.");
    let properties: Map<String, Value> = DEFINITIONS
        .iter()
        .map(|definition| (definition.key.to_string(), annotation(definition)))
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Annotations of a pod that Podvisor reads",
        "type": "object",
        "properties": properties,
        "propertyNames": { "pattern": format!("^(?!{prefix})|^{prefix}({})$", names.join("|")) },
        "additionalProperties": { "type": "string" },
    })
}

/// The text of an annotation; what YAML in it says is its content's schema.
fn annotation(definition: &Definition) -> Value {
    let mut schema = match definition.kind {
        kind @ (Kind::List { .. } | Kind::Map(_)) => json!({
            "type": "string",
            "maxLength": crate::value::yaml::MAX_LEN,
            "contentMediaType": "application/yaml",
            "contentSchema": value(kind),
        }),
        kind => text(kind),
    };
    schema["description"] = definition.meaning.into();
    schema["examples"] = definition.examples.into();
    schema
}

/// A value that is written as a text.
fn text(kind: Kind) -> Value {
    match kind {
        Kind::Number { .. } => json!({ "type": "string", "pattern": "^(0|[1-9][0-9]*)$" }),
        Kind::Quantity { .. } => json!({ "type": "string", "pattern": super::policy::QUANTITY }),
        Kind::Switch => json!({ "enum": ["true", "false"] }),
        Kind::Choice(words) => {
            json!({ "enum": words.iter().map(|word| word.word).collect::<Vec<_>>() })
        }
        Kind::Words(words) => json!({ "type": "string", "pattern": super::policy::words(words) }),
        Kind::Text {
            pattern, max_len, ..
        } => {
            // ECMAScript has no flags in an expression.
            let pattern = match pattern.strip_prefix("(?s)") {
                Some(pattern) => pattern.replace(".*", "[^]*"),
                None => pattern.to_owned(),
            };
            json!({ "type": "string", "pattern": pattern, "maxLength": max_len })
        }
        Kind::List { .. } | Kind::Map(_) => value(kind),
    }
}

/// A value inside of YAML.
fn value(kind: Kind) -> Value {
    match kind {
        Kind::Number { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Quantity { .. } => {
            json!({ "type": ["string", "integer"], "pattern": super::policy::QUANTITY })
        }
        Kind::Switch => json!({ "type": "boolean" }),
        Kind::Text { .. } => {
            let mut schema = text(kind);
            schema["type"] = json!(["string", "integer"]);
            schema
        }
        Kind::Choice(_) | Kind::Words(_) => text(kind),
        Kind::List { of, max } => {
            json!({ "type": "array", "items": value(*of), "maxItems": max, "uniqueItems": true })
        }
        Kind::Map(fields) => map(fields),
    }
}

fn map(fields: &[Field]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|field| {
            let mut schema = value(field.kind);
            schema["description"] = field.meaning.into();
            (field.name.to_owned(), schema)
        })
        .collect();
    let required: Vec<&str> = fields
        .iter()
        .filter(|field| field.required)
        .map(|field| field.name)
        .collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

//! `runtimeclass/annotation-policy.yaml`: the API server refuses a pod before it is scheduled.

mod evaluate;

use std::fmt::Write as _;

use crate::value::yaml;
use crate::{DEFINITIONS, Definition, Key, Kind, PREFIX};

/// Amounts as Kubernetes writes them, without a sign.
pub const QUANTITY: &str =
    r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)?$";

/// Runtime classes whose pods the policy is for.
const CLASSES: &str = "['podvisor']";

const HEAD: &str = "# Refuses pods whose podvisor.io/ annotations no node would take. Made from the definition in annotations/src by its tests:
# change it there. Runtime classes of other names that Podvisor serves belong into the list of matchConditions. What YAML in a value
# says is for the node to check: expressions cannot read it.
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: podvisor-annotations
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - apiGroups: [\"\"]
      apiVersions: [v1]
      operations: [CREATE, UPDATE]
      resources: [pods]
";

const BINDING: &str = "---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: podvisor-annotations
spec:
  policyName: podvisor-annotations
  validationActions: [Deny]
";

/// All expressions of the policy.
pub struct Policy {
    /// Names and expressions: whether a pod is looked at.
    pub conditions: [(&'static str, String); 2],
    /// Names and expressions, each of which may use those before it.
    pub variables: Vec<(&'static str, String)>,
    /// What must hold.
    pub validations: Vec<Validation>,
}

/// Something that must hold.
pub struct Validation {
    /// Whether it holds.
    pub expression: String,
    /// Why it does not; an expression.
    pub message: String,
}

#[test]
fn the_policy_is_what_the_definition_says() {
    super::check("runtimeclass/annotation-policy.yaml", &text().unwrap());
}

fn text() -> Result<String, std::fmt::Error> {
    let policy = Policy::new();
    let mut text = HEAD.to_owned();
    writeln!(text, "  matchConditions:")?;
    for (name, expression) in &policy.conditions {
        writeln!(
            text,
            "  - name: {name}\n    expression: {}",
            yaml_text(expression)
        )?;
    }
    writeln!(text, "  variables:")?;
    for (name, expression) in &policy.variables {
        writeln!(
            text,
            "  - name: {name}\n    expression: {}",
            yaml_text(expression)
        )?;
    }
    writeln!(text, "  validations:")?;
    for Validation {
        expression,
        message,
    } in &policy.validations
    {
        writeln!(text, "  - expression: {}", yaml_text(expression))?;
        writeln!(text, "    messageExpression: {}", yaml_text(message))?;
    }
    text.push_str(BINDING);
    Ok(text)
}

/// A YAML text in single quotes.
fn yaml_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Policy {
    /// The policy for all definitions.
    pub fn new() -> Self {
        let known: Vec<String> = Key::ALL.iter().map(|key| quote(&key.to_string())).collect();
        let unknown = format!(
            "variables.keys.filter(key, !(key in [{}]))",
            known.join(", ")
        );
        let mut validations = vec![Validation {
            expression: "variables.unknown.size() == 0".to_owned(),
            message: "'unknown annotation ' + variables.unknown.join(', ')".to_owned(),
        }];
        validations.extend(DEFINITIONS.iter().map(value));
        validations.extend(DEFINITIONS.iter().filter_map(order));
        Self {
            conditions: [
                (
                    "runtime-class",
                    format!(
                        "has(object.spec.runtimeClassName) && object.spec.runtimeClassName in {CLASSES}"
                    ),
                ),
                // What is on its way out must not be held back.
                (
                    "stays",
                    "!has(object.metadata.deletionTimestamp)".to_owned(),
                ),
            ],
            variables: vec![
                (
                    "annotations",
                    "has(object.metadata.annotations) ? object.metadata.annotations : {}"
                        .to_owned(),
                ),
                (
                    "keys",
                    format!(
                        "variables.annotations.filter(key, key.startsWith({}))",
                        quote(PREFIX)
                    ),
                ),
                ("unknown", unknown),
            ],
            validations,
        }
    }
}

/// What must hold of one key's value.
fn value(definition: &Definition) -> Validation {
    let value = of(definition.key);
    let allowed = definition.kind.to_string();
    Validation {
        expression: format!(
            "!{} || ({})",
            is_given(definition.key),
            holds(&value, definition.kind)
        ),
        // A message that has a line break is not shown.
        message: match definition.kind {
            Kind::List { .. }
            | Kind::Map(_)
            | Kind::Text {
                max_len: 1024.., ..
            } => quote(&format!(
                "annotation {} is not what is allowed: {allowed}",
                definition.key
            )),
            _ => format!(
                "{} + {value} + {}",
                quote(&format!("annotation {}: \"", definition.key)),
                quote(&format!("\" is not what is allowed: {allowed}"))
            ),
        },
    }
}

/// What must hold of two keys, where one must not be below the other.
fn order(definition: &Definition) -> Option<Validation> {
    let (key, other) = (definition.key, definition.at_least?);
    let (most, least) = (of(key), of(other));
    let compared = match definition.kind {
        Kind::Quantity { .. } => format!("quantity({most}).compareTo(quantity({least})) >= 0"),
        _ => format!("int({most}) >= int({least})"),
    };
    let well_formed = [(&most, key), (&least, other)].map(|(value, key)| {
        let form = form(value, key.definition().kind);
        format!("{} && {form}", is_given(key))
    });
    Some(Validation {
        expression: format!("!({}) || {compared}", well_formed.join(" && ")),
        message: format!(
            "{} + {least}",
            quote(&format!(
                "annotation {key} must be at least what {other} is: "
            ))
        ),
    })
}

/// Whether a value has the form of a kind.
fn form(value: &str, kind: Kind) -> String {
    let matches = |pattern: &str| format!("{value}.matches({})", quote(pattern));
    match kind {
        // More digits would not fit an integer.
        Kind::Number { .. } => matches("^(0|[1-9][0-9]{0,17})$"),
        Kind::Quantity { .. } => format!("{} && isQuantity({value})", matches(QUANTITY)),
        Kind::Switch => format!("{value} in ['true', 'false']"),
        Kind::Choice(choices) => {
            let choices: Vec<String> = choices.iter().map(|choice| quote(choice.word)).collect();
            format!("{value} in [{}]", choices.join(", "))
        }
        Kind::Words(list) => matches(&words(list)),
        Kind::Text { pattern, .. } => matches(pattern),
        Kind::List { .. } => matches(r"(?s)^\s*(#[^\n]*\n\s*)*(---\s+)?[\[-].*$"),
        Kind::Map(_) => matches(r"(?s)^\s*(#[^\n]*\n\s*)*(---\s+)?(\{|[A-Za-z-]+:).*$"),
    }
}

/// Whether a value is one of a kind, as far as an expression can tell.
fn holds(value: &str, kind: Kind) -> String {
    let form = form(value, kind);
    match kind {
        Kind::Number { min, max } => {
            format!("{form} && int({value}) >= {min} && int({value}) <= {max}")
        }
        Kind::Quantity { min, max } => format!(
            "{form} && quantity({value}).compareTo(quantity('{min}')) >= 0 && \
             quantity({value}).compareTo(quantity('{max}')) <= 0"
        ),
        Kind::Text { max_len, .. } => format!("{value}.size() <= {max_len} && {form}"),
        Kind::List { .. } | Kind::Map(_) => {
            format!("{value}.size() <= {} && {form}", yaml::MAX_LEN)
        }
        Kind::Switch | Kind::Choice(_) | Kind::Words(_) => form,
    }
}

/// An expression for words of a list.
pub fn words(words: &[&str]) -> String {
    let words = words.join("|");
    format!(r"^\s*(({words})(\s+({words}))*)?\s*$")
}

fn of(key: Key) -> String {
    format!("variables.annotations[{}]", quote(&key.to_string()))
}

fn is_given(key: Key) -> String {
    format!("({} in variables.annotations)", quote(&key.to_string()))
}

/// A text in CEL.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

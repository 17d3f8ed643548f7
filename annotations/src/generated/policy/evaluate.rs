//! Evaluates the policy on pods, as the API server does.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::{DEFINITIONS, Key, Kind};
use cel::extractors::This;
use cel::{Context, Program, Value};
use podvisor_proto::quantity::Quantity;
use serde_json::json;

use super::Policy;

/// Kubernetes' own functions of amounts (k8s.io/apiserver, `pkg/cel/library/quantity.go`) and of
/// lists of texts.
fn context() -> Context<'static, 'static> {
    let mut context = Context::default();
    let bytes = |text: Arc<String>| text.parse::<Quantity>().map(Quantity::units);
    context
        .add_function("isQuantity", move |text: Arc<String>| bytes(text).is_ok())
        .unwrap();
    context
        .add_function("quantity", move |text: Arc<String>| bytes(text).unwrap())
        .unwrap();
    context
        .add_function("compareTo", |This(a): This<i64>, b: i64| a.cmp(&b) as i64)
        .unwrap();
    context
        .add_function(
            "join",
            |This(list): This<Arc<Vec<Value>>>, between: Arc<String>| {
                let texts: Vec<String> = list
                    .iter()
                    .map(|value| match value {
                        Value::String(text) => text.to_string(),
                        other => panic!("{other:?} is no text"),
                    })
                    .collect();
                texts.join(&between)
            },
        )
        .unwrap();
    context
}

/// Why the policy refuses a pod; nothing when it does not.
fn refusals(class: &str, annotations: &[(&str, &str)]) -> Vec<String> {
    let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
    let metadata = match annotations.is_empty() {
        true => json!({}),
        false => json!({ "annotations": annotations }),
    };
    refusals_of(&json!({ "spec": { "runtimeClassName": class }, "metadata": metadata }))
}

fn refusals_of(object: &serde_json::Value) -> Vec<String> {
    let policy = Policy::new();
    let mut context = context();
    context.add_variable("object", object).unwrap();
    let evaluate = |context: &Context<'_, '_>, expression: &str| {
        let program = Program::compile(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        let value = program.execute(context);
        value.unwrap_or_else(|e| panic!("{expression}: {e}"))
    };
    let mut conditions = policy.conditions.iter();
    if conditions.any(|(_, condition)| evaluate(&context, condition) == Value::Bool(false)) {
        return Vec::new();
    }
    let mut variables = HashMap::new();
    for (name, expression) in &policy.variables {
        let value = evaluate(&context, expression);
        variables.insert((*name).to_owned(), value);
        context.add_variable_from_value("variables", variables.clone());
    }
    let broken = policy
        .validations
        .iter()
        .filter(|validation| evaluate(&context, &validation.expression) != Value::Bool(true));
    broken
        .map(|validation| match evaluate(&context, &validation.message) {
            Value::String(message) => message.to_string(),
            other => panic!("{other:?} is no message"),
        })
        .collect()
}

#[test]
fn pods_that_a_node_takes_are_let_through() {
    assert_eq!(refusals("podvisor", &[]), Vec::<String>::new());
    for definition in &DEFINITIONS {
        let key = definition.key.to_string();
        for example in definition.examples {
            let refused = refusals("podvisor", &[(&key, example), ("example.org/x", "y")]);
            assert_eq!(refused, Vec::<String>::new(), "{key}: {example}");
        }
    }
    let together = [("podvisor.io/cpus", "2"), ("podvisor.io/max-cpus", "8")];
    assert_eq!(refusals("podvisor", &together), Vec::<String>::new());
}

#[test]
fn pods_of_other_classes_and_those_that_go_are_not_looked_at() {
    let going = json!({
        "spec": { "runtimeClassName": "podvisor" },
        "metadata": { "deletionTimestamp": "now", "annotations": { "podvisor.io/cpus": "many" } },
    });
    assert_eq!(refusals_of(&going), Vec::<String>::new());
    assert_eq!(
        refusals("runc", &[("podvisor.io/cpus", "many")]),
        Vec::<String>::new()
    );
}

#[test]
fn wrong_values_are_refused_with_key_value_and_what_is_allowed() {
    for (key, value, allowed) in [
        ("podvisor.io/cpus", "0", "1 to 254"),
        ("podvisor.io/cpus", "255", "1 to 254"),
        ("podvisor.io/cpus", "many", "1 to 254"),
        ("podvisor.io/cpus", "99999999999999999999999", "1 to 254"),
        ("podvisor.io/memory", "4096", "32Mi to 383Gi"),
        ("podvisor.io/memory", "1Ti", "32Mi to 383Gi"),
        ("podvisor.io/memory", "12parsecs", "quantity"),
        ("podvisor.io/cpu-topology", "1:2", "sockets:cores:threads"),
        ("podvisor.io/cpu-model", "x86-64-v5", "x86-64-v4"),
        ("podvisor.io/kernel-args", "init=/bin/sh", "mitigations=off"),
        ("podvisor.io/watchdog", "3601", "1 to 3600"),
        ("podvisor.io/on-reboot", "maybe", "stop, restart"),
    ] {
        let refused = refusals("podvisor", &[(key, value)]);
        let [message] = refused.as_slice() else {
            panic!("{key}: {value}: {refused:?}");
        };
        for part in [key, value, allowed] {
            assert!(message.contains(part), "{message}");
        }
    }
    for (key, value) in [
        ("podvisor.io/disks", "/data"),
        ("podvisor.io/nics", ""),
        ("podvisor.io/smbios", "[]"),
        ("podvisor.io/cloud-init", "packages: [nginx]"),
        ("podvisor.io/ssh-keys", "none"),
    ] {
        let refused = refusals("podvisor", &[(key, value)]);
        assert!(
            refused.len() == 1 && refused[0].contains(key),
            "{value}: {refused:?}"
        );
    }
}

#[test]
fn unknown_keys_and_wrong_orders_are_refused() {
    let refused = refusals(
        "podvisor",
        &[("podvisor.io/cpu", "1"), ("podvisor.io/display", "vnc")],
    );
    // A map has no order.
    let either = [
        "unknown annotation podvisor.io/cpu, podvisor.io/display",
        "unknown annotation podvisor.io/display, podvisor.io/cpu",
    ];
    assert!(
        matches!(&*refused, [message] if either.contains(&&**message)),
        "{refused:?}"
    );
    for (pairs, message) in [
        (
            [("podvisor.io/cpus", "10"), ("podvisor.io/max-cpus", "9")],
            "annotation podvisor.io/max-cpus must be at least what podvisor.io/cpus is: 10",
        ),
        (
            [
                ("podvisor.io/memory", "1Gi"),
                ("podvisor.io/max-memory", "1000Mi"),
            ],
            "annotation podvisor.io/max-memory must be at least what podvisor.io/memory is: 1Gi",
        ),
    ] {
        assert_eq!(refusals("podvisor", &pairs), [message]);
    }
}

#[test]
fn messages_have_no_line_break() {
    // The API server does not show one that has.
    for validation in Policy::new().validations {
        assert!(!validation.message.contains('\n'));
    }
    for key in Key::ALL {
        let shows_value = matches!(
            key.definition().kind,
            Kind::Text {
                max_len: 0..1024,
                ..
            }
        );
        if shows_value {
            let refused = refusals("podvisor", &[(&key.to_string(), "")]);
            assert!(
                refused.iter().all(|message| !message.contains('\n')),
                "{refused:?}"
            );
        }
    }
}

//! The pod's resolv.conf.

use podvisor_proto::cri::v1::DnsConfig as CriDnsConfig;

use crate::manifest::pod::{DnsConfig, DnsPolicy, PodSpec};

/// The pod's name servers; `None` leaves the host's resolv.conf as it is.
pub fn dns_config(spec: &PodSpec, host_resolv_conf: &str) -> Option<CriDnsConfig> {
    let base = match (spec.dns_policy, &spec.dns_config) {
        (DnsPolicy::None, _) => CriDnsConfig::default(),
        (_, None) => return None,
        (_, Some(_)) => parse(host_resolv_conf),
    };
    Some(merge(base, spec.dns_config.as_ref()))
}

/// Reads resolv.conf(5).
fn parse(text: &str) -> CriDnsConfig {
    let mut config = CriDnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            // The last line wins.
            Some("search") => config.searches = words.collect(),
            Some("options") => config.options = words.collect(),
            _ => {}
        }
    }
    config
}

fn merge(mut base: CriDnsConfig, more: Option<&DnsConfig>) -> CriDnsConfig {
    let Some(more) = more else { return base };
    append_new(&mut base.servers, more.nameservers.iter().cloned());
    append_new(&mut base.searches, more.searches.iter().cloned());
    for option in &more.options {
        let name = |text: &str| text.split(':').next() == Some(option.name.as_str());
        base.options.retain(|existing| !name(existing));
        base.options.push(match &option.value {
            Some(value) => format!("{}:{value}", option.name),
            None => option.name.clone(),
        });
    }
    base
}

fn append_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::manifest;
    use super::*;

    const HOST: &str =
        "# comment\nnameserver 10.0.0.1\nsearch a.test b.test\noptions ndots:1 edns0\n";

    fn config(spec: &str) -> Option<CriDnsConfig> {
        let spec = format!("  containers: [{{name: a, image: i}}]\n{spec}");
        dns_config(&manifest(&spec, "").pod.spec, HOST)
    }

    #[test]
    fn without_settings_the_hosts_file_is_taken_as_it_is() {
        assert_eq!(config(""), None);
    }

    #[test]
    fn settings_add_to_the_hosts_file_and_replace_its_options() {
        let merged = config(
            "  dnsConfig: {nameservers: [10.0.0.1, 1.1.1.1], searches: [c.test], \
             options: [{name: ndots, value: '5'}, {name: rotate}]}",
        )
        .unwrap();
        assert_eq!(merged.servers, ["10.0.0.1", "1.1.1.1"]);
        assert_eq!(merged.searches, ["a.test", "b.test", "c.test"]);
        assert_eq!(merged.options, ["edns0", "ndots:5", "rotate"]);
    }

    #[test]
    fn policy_none_takes_nothing_from_the_host() {
        let own = config("  dnsPolicy: None\n  dnsConfig: {nameservers: [9.9.9.9]}").unwrap();
        assert_eq!(own.servers, ["9.9.9.9"]);
        assert!(own.searches.is_empty() && own.options.is_empty());
    }
}

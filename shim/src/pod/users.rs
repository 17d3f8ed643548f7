//! Pods whose users are others outside of them (`hostUsers: false`): which ones. A number that a
//! file has on the host is the same in the guest; the guest's kernel maps it for the pod.

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};
use podvisor_proto::agent::v1 as agent;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Who owns what nobody of a map owns (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65534;

/// Numbers of users or groups that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdRange {
    /// The first one in the pod.
    pub inside: u32,
    /// The first one outside.
    pub outside: u32,
    /// How many there are.
    pub len: u32,
}

/// What the users and groups of a pod are outside of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UserMaps {
    users: Vec<IdRange>,
    groups: Vec<IdRange>,
}

/// A pod's users that nothing can be made of.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum UserMapsError {
    /// There are none.
    #[error(
        "hostUsers is false, and linux.uidMappings or linux.gidMappings says of no number what it is"
    )]
    Missing,
    /// Nobody in the pod would be root, as whom a container begins.
    #[error(
        "hostUsers is false, and linux.uidMappings or linux.gidMappings does not say what 0 is"
    )]
    NoRoot,
}

impl UserMaps {
    /// Those of a pod's sandbox; None where its users are the guest's.
    ///
    /// # Errors
    /// [`UserMapsError`].
    pub fn of_pod(spec: &Spec) -> Result<Option<Self>, UserMapsError> {
        let Some(linux) = spec.linux() else {
            return Ok(None);
        };
        let namespaces = linux.namespaces().as_deref().unwrap_or_default();
        let is_users = |kind| kind == LinuxNamespaceType::User;
        if !namespaces.iter().any(|own| is_users(own.typ())) {
            return Ok(None);
        }
        let maps = Self::new(linux.uid_mappings(), linux.gid_mappings());
        let maps = maps.ok_or(UserMapsError::Missing)?;
        let has_root = |ranges: &[IdRange]| ranges.iter().any(|r| r.inside == 0 && r.len > 0);
        if !has_root(&maps.users) || !has_root(&maps.groups) {
            return Err(UserMapsError::NoRoot);
        }
        Ok(Some(maps))
    }

    /// Those by which a mount's files are to have other owners than on their file system.
    pub fn of_mount(mount: &Mount) -> Option<Self> {
        Self::new(mount.uid_mappings(), mount.gid_mappings())
    }

    /// Those of a mount option's words: `0:1000:65536`, several with commas between.
    pub fn of_options(users: &str, groups: &str) -> Option<Self> {
        Some(Self {
            users: ranges(users)?,
            groups: ranges(groups)?,
        })
    }

    fn new(
        users: &Option<Vec<LinuxIdMapping>>,
        groups: &Option<Vec<LinuxIdMapping>>,
    ) -> Option<Self> {
        let ranges = |list: &Option<Vec<LinuxIdMapping>>| {
            let list = list.as_deref().filter(|list| !list.is_empty())?;
            let range = |map: &LinuxIdMapping| IdRange {
                inside: map.container_id(),
                outside: map.host_id(),
                len: map.size(),
            };
            Some(list.iter().map(range).collect())
        };
        Some(Self {
            users: ranges(users)?,
            groups: ranges(groups)?,
        })
    }

    /// Who a user of the pod is outside.
    pub fn user(&self, inside: u32) -> u32 {
        outside(&self.users, inside)
    }

    /// What a group of the pod is outside.
    pub fn group(&self, inside: u32) -> u32 {
        outside(&self.groups, inside)
    }

    /// The lines of `uid_map` and `gid_map` (user_namespaces(7)).
    pub fn lines(&self) -> [String; 2] {
        [&self.users, &self.groups].map(|ranges| {
            let lines = ranges
                .iter()
                .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.len));
            lines.collect()
        })
    }
}

impl From<UserMaps> for agent::UserMaps {
    fn from(maps: UserMaps) -> Self {
        let ranges = |list: Vec<IdRange>| {
            let range = |range: IdRange| agent::IdRange {
                inside: range.inside,
                outside: range.outside,
                len: range.len,
            };
            list.into_iter().map(range).collect()
        };
        Self {
            users: ranges(maps.users),
            groups: ranges(maps.groups),
        }
    }
}

fn ranges(words: &str) -> Option<Vec<IdRange>> {
    let range = |word: &str| {
        let mut numbers = word.split(':').map(|number| number.parse().ok());
        let range = IdRange {
            inside: numbers.next()??,
            outside: numbers.next()??,
            len: numbers.next()??,
        };
        numbers.next().is_none().then_some(range)
    };
    words.split(',').map(range).collect()
}

fn outside(ranges: &[IdRange], inside: u32) -> u32 {
    let found = ranges.iter().find_map(|range| {
        let place = inside.checked_sub(range.inside)?;
        (place < range.len).then(|| range.outside.checked_add(place))?
    });
    found.unwrap_or(NOBODY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(linux: &str) -> Spec {
        let json = format!(r#"{{"ociVersion":"1.1.0","linux":{linux}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_pods_users_are_in_its_sandboxs_spec() {
        assert_eq!(UserMaps::of_pod(&spec("{}")), Ok(None));
        let none = spec(r#"{"namespaces":[{"type":"user"}]}"#);
        assert_eq!(UserMaps::of_pod(&none), Err(UserMapsError::Missing));
        let with = |users: &str, groups: &str| {
            spec(&format!(
                r#"{{"namespaces":[{{"type":"user"}}],"uidMappings":{users},"gidMappings":{groups}}}"#
            ))
        };
        let map = r#"[{"containerID":0,"hostID":1000,"size":100000}]"#;
        let rootless = r#"[{"containerID":1,"hostID":1000,"size":100000}]"#;
        for (users, groups) in [(rootless, map), (map, rootless)] {
            let spec = with(users, groups);
            assert_eq!(UserMaps::of_pod(&spec), Err(UserMapsError::NoRoot));
        }
        let some = with(map, map);
        let maps = UserMaps::of_pod(&some).unwrap().unwrap();
        assert_eq!(maps.lines(), ["0 1000 100000\n", "0 1000 100000\n"]);
        assert_eq!(
            Some(maps),
            UserMaps::of_options("0:1000:100000", "0:1000:100000")
        );
    }

    #[test]
    fn numbers_are_mapped_by_their_range() {
        let maps = UserMaps::of_options("0:1000:10,70000:5:1", "0:2000:10").unwrap();
        assert_eq!(
            [0, 9, 10, 70000].map(|id| maps.user(id)),
            [1000, 1009, NOBODY, 5]
        );
        assert_eq!(maps.group(3), 2003);
    }

    #[test]
    fn malformed_options_are_none() {
        for words in ["", "0", "0:1", "0:1:2:3", "0:1:x", "0:1:2,", "-1:1:1"] {
            assert_eq!(UserMaps::of_options(words, "0:1:1"), None, "{words:?}");
        }
    }
}

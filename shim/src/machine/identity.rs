//! What makes a machine the same one after its pod was deleted and created again: all of it follows
//! from the pod's namespace and name.

use sha2::{Digest as _, Sha256};

/// Keeps these numbers apart from others made of the same names.
const DOMAIN: &str = "podvisor.io/machine/1";

/// A machine's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

impl Identity {
    /// The hash of the identity for one `purpose`. Lengths keep neighbouring texts apart.
    fn hash(&self, purpose: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        for text in [DOMAIN, purpose, &self.namespace, &self.name] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.finalize().into()
    }

    /// Its UUID, of version 8 (RFC 9562, 5.8).
    pub fn uuid(&self) -> [u8; 16] {
        let [
            a,
            b,
            c,
            d,
            e,
            f,
            version,
            g,
            variant,
            h,
            i,
            j,
            k,
            l,
            m,
            n,
            ..,
        ] = self.hash("uuid");
        [
            a,
            b,
            c,
            d,
            e,
            f,
            (version & 0x0f) | 0x80,
            g,
            (variant & 0x3f) | 0x80,
            h,
            i,
            j,
            k,
            l,
            m,
            n,
        ]
    }

    /// What the hardware addresses of its cards are made from, with [`mac`].
    pub fn mac_seed(&self) -> [u8; 32] {
        self.hash("mac")
    }

    /// Its serial number, in people's words.
    pub fn serial(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The generation of a disk of which nothing else is known: it is this machine's for good.
    pub fn generation(&self) -> u128 {
        let [half @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = self.hash("generation");
        u128::from_be_bytes(half)
    }
}

/// The hardware address of the card `interface`: locally administered, one station's.
pub fn mac(seed: &[u8; 32], interface: &str) -> [u8; 6] {
    let hash: [u8; 32] = Sha256::new()
        .chain_update(seed)
        .chain_update(interface)
        .finalize()
        .into();
    let [first, b, c, d, e, f, ..] = hash;
    [(first & 0xfc) | 0x02, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(namespace: &str, name: &str) -> Identity {
        Identity {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn the_same_pod_is_the_same_machine() {
        assert_eq!(identity("a", "b-0").uuid(), identity("a", "b-0").uuid());
        assert_ne!(identity("a", "b-0").uuid(), identity("a", "b-1").uuid());
        assert_ne!(identity("ab", "c").uuid(), identity("a", "bc").uuid());
        let pet = identity("a", "b-0");
        let seed = pet.mac_seed();
        assert_ne!(mac(&seed, "eth0"), mac(&seed, "net1"));
        assert_eq!(
            mac(&seed, "eth0"),
            mac(&identity("a", "b-0").mac_seed(), "eth0")
        );
    }

    #[test]
    fn numbers_are_of_the_kind_that_they_say() {
        for name in ["a", "b", "c", "d", "e"] {
            let pet = identity("default", name);
            assert_eq!(pet.uuid()[6] >> 4, 8);
            assert_eq!(pet.uuid()[8] >> 6, 2);
            assert_eq!(mac(&pet.mac_seed(), "eth0")[0] & 3, 2);
        }
    }
}

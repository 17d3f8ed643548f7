//! Makes the types of simple values, each with its [`Kind`](crate::Kind).

/// A [`serde::Deserialize`] that reads a scalar as the text it is written as: `0010`, `512Mi` and
/// `true` stay what they look like.
macro_rules! deserialize_from_text {
    ($name:ty) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = $crate::value::ScalarText::deserialize(deserializer)?;
                text.0.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A whole number within bounds.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty) in $min:literal..=$max:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name($inner);

        impl $name {
            /// The least.
            pub const MIN: Self = Self($min);
            /// The most.
            pub const MAX: Self = Self($max);
            /// The form of it.
            pub const KIND: $crate::Kind = $crate::Kind::Number { min: $min, max: $max };

            /// The number.
            #[must_use]
            pub fn get(self) -> $inner {
                self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::value::whole_number(text)
                    .and_then(|number| <$inner>::try_from(number).ok())
                    .filter(|number| ($min..=$max).contains(number))
                    .map(Self)
                    .ok_or_else(|| {
                        $crate::ValueError::new(
                            text,
                            concat!($what, " from ", stringify!($min), " to ", stringify!($max)),
                        )
                    })
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        deserialize_from_text!($name);
    };
}

/// An amount of bytes within bounds, in whole `$unit`s.
macro_rules! amount {
    ($(#[$doc:meta])* $name:ident in [$min:expr, $max:expr] by $unit:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(u64);

        impl $name {
            /// The least, in bytes.
            pub const MIN: u64 = $min;
            /// The most, in bytes.
            pub const MAX: u64 = $max;
            /// The form of it.
            pub const KIND: $crate::Kind = $crate::Kind::Quantity { min: $min, max: $max };

            /// The amount in bytes.
            #[must_use]
            pub fn bytes(self) -> u64 {
                self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let quantity = text.parse::<podvisor_proto::quantity::Quantity>();
                quantity
                    .ok()
                    .map(podvisor_proto::quantity::Quantity::bytes)
                    .filter(|bytes| (Self::MIN..=Self::MAX).contains(bytes) && bytes.is_multiple_of($unit))
                    .map(Self)
                    .ok_or_else(|| $crate::ValueError::new(text, $crate::value::amount_expected($what, Self::MIN, Self::MAX, $unit)))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&$crate::value::readable_bytes(self.0))
            }
        }

        deserialize_from_text!($name);
    };
}

/// One word of several.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal: $meaning:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(#[doc = concat!("`", $word, "`: ", $meaning, ".")] $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The form of it.
            pub const KIND: $crate::Kind = $crate::Kind::Choice(&[
                $($crate::Word { word: $word, meaning: $meaning },)*
            ]);

            /// The word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err($crate::ValueError::new(
                        text,
                        format!("one of {}", [$($word,)*].join(", ")),
                    )),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        deserialize_from_text!($name);
    };
}

/// A text that its `check` function lets through.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident: $pattern:literal, at most $max:literal, $check:expr, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The longest, in bytes.
            pub const MAX_LEN: usize = $max;
            /// The form of it.
            pub const KIND: $crate::Kind = $crate::Kind::Text { pattern: $pattern, max_len: $max, what: $what };

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let check: fn(&str) -> bool = $check;
                if text.len() <= $max && check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err($crate::ValueError::new(text, $what))
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        deserialize_from_text!($name);
    };
}

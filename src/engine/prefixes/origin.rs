//! Everything that the contents of a sequence depend on, beside its tokens.

/// The engine that has computed a sequence. Rope parameters come from the model's file and are not
/// overridden, so the file's digest stands for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The build of llama.cpp, the version of its format, and the instructions that it uses: other
    /// instructions round differently.
    pub build: String,
    /// The digest of the model's file, in hexadecimal digits.
    pub model_sha256: String,
    /// The type of keys and values.
    pub kv_type: &'static str,
    pub has_flash_attention: bool,
    pub has_unified_cache: bool,
    /// Tokens of one sequence: some models scale their positions by it.
    pub context: u32,
    /// Layers on the GPU, which rounds differently.
    pub gpu_layers: u32,
}

impl Origin {
    /// Returns a text that is the same for the same engine only.
    pub fn text(&self) -> String {
        let Origin {
            build,
            model_sha256,
            kv_type,
            has_flash_attention,
            has_unified_cache,
            context,
            gpu_layers,
        } = self;
        format!(
            "build={build}\nmodel={model_sha256}\nkv={kv_type}\nflash={has_flash_attention}\n\
             unified={has_unified_cache}\ncontext={context}\ngpu_layers={gpu_layers}\n"
        )
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn origin() -> Origin {
        Origin {
            build: "b1".to_owned(),
            model_sha256: "ab".repeat(32),
            kv_type: "f16",
            has_flash_attention: true,
            has_unified_cache: false,
            context: 2_048,
            gpu_layers: 0,
        }
    }

    /// Mutation that this test catches: any member left out of the text.
    #[test]
    fn each_member_makes_another_origin() {
        let all = [
            origin(),
            Origin {
                build: "b2".to_owned(),
                ..origin()
            },
            Origin {
                model_sha256: "cd".repeat(32),
                ..origin()
            },
            Origin {
                kv_type: "q8_0",
                ..origin()
            },
            Origin {
                has_flash_attention: false,
                ..origin()
            },
            Origin {
                has_unified_cache: true,
                ..origin()
            },
            Origin {
                context: 4_096,
                ..origin()
            },
            Origin {
                gpu_layers: 9,
                ..origin()
            },
        ];
        let texts: std::collections::HashSet<String> = all.iter().map(Origin::text).collect();
        assert_eq!(texts.len(), all.len());
    }
}

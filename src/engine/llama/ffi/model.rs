//! Weights and vocabulary, which are only read, and shared, once a file is loaded.
//!
//! Owns the pointer to the model, and frees it once. Knows no context.

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};

use llama_cpp_sys_2 as sys;

use super::super::KvType;
use super::super::backend::Token;
use super::calls::{self, guarded};
use super::{LoadError, initialize, take_first_error};
use crate::limits::engine as limits;

/// Weights and vocabulary. Immutable once loaded.
#[derive(Debug)]
pub struct Model {
    pub(super) model: NonNull<sys::llama_model>,
    pub(super) vocabulary: NonNull<sys::llama_vocab>,
    pub(super) vocabulary_size: usize,
    longest_piece: usize,
}

// SAFETY: llama.cpp only reads a loaded model; tokenizing is documented as thread-safe.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Loads a GGUF file. `progress` is called with 0.0 to 1.0 and must not panic; if it returns
    /// false, loading ends with an error.
    pub fn load(
        path: &Path,
        gpu_layers: u32,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Model, LoadError> {
        initialize();
        let name = path.display();
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| LoadError(format!("{name}: a path cannot hold a NUL byte")))?;
        check_is_gguf(path)?;
        let mut progress = progress;
        // SAFETY: a plain struct of defaults.
        let mut parameters = unsafe { sys::llama_model_default_params() };
        parameters.n_gpu_layers = gpu_layers.min(i32::MAX as u32) as i32;
        parameters.progress_callback = Some(forward_progress);
        parameters.progress_callback_user_data = ptr::from_mut(&mut progress).cast();
        // Forget errors about an earlier file.
        let _ = take_first_error();
        // SAFETY: the path ends in NUL; `progress` outlives the call, which uses it on this thread.
        let model =
            guarded(|| unsafe { calls::llama_model_load_from_file(c_path.as_ptr(), parameters) })
                .map_err(|thrown| LoadError(format!("{name}: {thrown}")))?;
        let model = NonNull::new(model).ok_or_else(|| {
            LoadError::with_reason(format_args!("{name}: llama.cpp cannot load this file"))
        })?;
        // SAFETY: the model is loaded; its vocabulary lives as long as it does.
        let vocabulary = unsafe { sys::llama_model_get_vocab(model.as_ptr()) };
        let vocabulary = NonNull::new(vocabulary.cast_mut())
            .ok_or_else(|| LoadError(format!("{name}: the model has no vocabulary")))?;
        // SAFETY: the pointer comes from the loaded model.
        let size = unsafe { sys::llama_vocab_n_tokens(vocabulary.as_ptr()) };
        // SAFETY: the model is loaded.
        let (can_decode, needs_encoder) = unsafe {
            (
                sys::llama_model_has_decoder(model.as_ptr()),
                sys::llama_model_has_encoder(model.as_ptr()),
            )
        };
        let vocabulary_size = usize::try_from(size).unwrap_or(0);
        let mut model = Model {
            model,
            vocabulary,
            vocabulary_size,
            longest_piece: 0,
        };
        model.longest_piece = model.measured_longest_piece();
        if !can_decode || needs_encoder || model.vocabulary_size == 0 {
            return Err(LoadError(format!(
                "{name}: this model is for embeddings or translation and cannot continue a text"
            )));
        }
        Ok(model)
    }

    /// Appends the bytes of a token: none for a token that is only a mark. A character of several
    /// bytes may be spread over several tokens.
    pub fn append_piece(&self, token: Token, bytes: &mut Vec<u8>) {
        if !self.is_token(token) {
            return;
        }
        let mut piece = [0_u8; limits::TOKEN_TEXT_BYTES_MAX];
        let (vocabulary, data) = (self.vocabulary.as_ptr(), piece.as_mut_ptr().cast());
        // SAFETY: the token is within the vocabulary, and the buffer comes with its length.
        let length = guarded(|| unsafe {
            calls::llama_token_to_piece(
                vocabulary,
                token,
                data,
                limits::TOKEN_TEXT_BYTES_MAX as i32,
                0,
                false,
            )
        });
        let length = length.inspect_err(|thrown| log::error!("token {token}: {thrown}"));
        if let Some(piece) = usize::try_from(length.unwrap_or(0))
            .ok()
            .and_then(|length| piece.get(..length))
        {
            bytes.extend_from_slice(piece);
        }
    }

    /// Returns whether the model ends its output with this token.
    pub fn is_end(&self, token: Token) -> bool {
        let vocabulary = self.vocabulary.as_ptr();
        // SAFETY: the token is within the vocabulary.
        let is_end = || unsafe { calls::llama_vocab_is_eog(vocabulary, token) };
        self.is_token(token) && guarded(is_end).unwrap_or(false)
    }

    /// Returns the names that client text must not contain: those that the tokenizer takes for
    /// control tokens, and those that end an output.
    pub fn control_names(&self) -> Vec<String> {
        let tokens = 0..self.vocabulary_size as Token;
        let controls = tokens.filter(|token| self.is_control(*token) || self.is_end(*token));
        controls
            .filter_map(|token| self.token_text(token))
            .collect()
    }

    fn is_control(&self, token: Token) -> bool {
        let vocabulary = self.vocabulary.as_ptr();
        // SAFETY: the token is within the vocabulary.
        let attributes = || unsafe { calls::llama_vocab_get_attr(vocabulary, token) };
        let controls = sys::LLAMA_TOKEN_ATTR_CONTROL | sys::LLAMA_TOKEN_ATTR_UNKNOWN;
        self.is_token(token) && guarded(attributes).is_ok_and(|found| found & controls != 0)
    }

    /// Returns the token that the model expects before every text, if it expects one.
    pub fn start_token(&self) -> Option<Token> {
        let vocabulary = self.vocabulary.as_ptr();
        // SAFETY: the vocabulary is that of a loaded model.
        let (adds, token) = unsafe {
            (
                sys::llama_vocab_get_add_bos(vocabulary),
                sys::llama_vocab_bos(vocabulary),
            )
        };
        (adds && self.is_token(token)).then_some(token)
    }

    /// Returns the text of the token before every text, if the model has one.
    pub fn start_text(&self) -> Option<String> {
        // SAFETY: the vocabulary is that of a loaded model.
        self.token_text(unsafe { sys::llama_vocab_bos(self.vocabulary.as_ptr()) })
    }

    /// Returns the text of the token that ends a text, if the model has one.
    pub fn end_text(&self) -> Option<String> {
        // SAFETY: the vocabulary is that of a loaded model.
        self.token_text(unsafe { sys::llama_vocab_eos(self.vocabulary.as_ptr()) })
    }

    /// Returns the Jinja template for conversations that came with the model.
    pub fn chat_template(&self) -> Option<String> {
        let model = self.model.as_ptr();
        // SAFETY: the model is loaded; a null name asks for the default template.
        let template = guarded(|| unsafe { calls::llama_model_chat_template(model, ptr::null()) });
        template.ok().and_then(owned_text)
    }

    /// Returns the value of a key of the file's metadata, cut if it is too long to be a name.
    pub fn metadata(&self, key: &CStr) -> Option<String> {
        let mut text = [0_u8; limits::METADATA_TEXT_BYTES_MAX];
        let (model, data, room) = (self.model.as_ptr(), text.as_mut_ptr().cast(), text.len());
        // SAFETY: the key ends in NUL; the buffer comes with its length, and llama.cpp ends the
        // text with NUL within it.
        let length =
            guarded(|| unsafe { calls::llama_model_meta_val_str(model, key.as_ptr(), data, room) });
        let length = length.ok()?;
        let text = CStr::from_bytes_until_nul(&text).ok()?;
        (length >= 0).then(|| text.to_string_lossy().into_owned())
    }

    /// Returns a description such as `llama 135M Q4_1`.
    pub fn description(&self) -> String {
        let mut text = [0_u8; 256];
        let (model, data, room) = (self.model.as_ptr(), text.as_mut_ptr().cast(), text.len());
        // SAFETY: the buffer comes with its length; llama.cpp ends the text with NUL within it.
        if guarded(|| unsafe { calls::llama_model_desc(model, data, room) }).is_err() {
            return String::new();
        }
        CStr::from_bytes_until_nul(&text).map_or_else(
            |_| String::new(),
            |text| text.to_string_lossy().into_owned(),
        )
    }

    /// Returns the context that the model was trained with, in tokens.
    pub fn trained_context(&self) -> u32 {
        // SAFETY: the model is loaded.
        let tokens = unsafe { sys::llama_model_n_ctx_train(self.model.as_ptr()) };
        u32::try_from(tokens).unwrap_or(0)
    }

    /// Returns the bytes that one token takes in the KV cache, for planning memory. Too high for
    /// the few models whose layers differ, never too low.
    pub fn cache_bytes_per_token(&self, kv_type: KvType) -> u64 {
        let model = self.model.as_ptr();
        // SAFETY: the model is loaded; the calls only read.
        let (layers, width, heads, cached_heads) = unsafe {
            (
                sys::llama_model_n_layer(model),
                sys::llama_model_n_embd(model),
                sys::llama_model_n_head(model),
                sys::llama_model_n_head_kv(model),
            )
        };
        let [layers, width, heads, cached_heads] =
            [layers, width, heads, cached_heads].map(|n| u64::try_from(n).unwrap_or(0));
        let keys_and_values = 2;
        let cached_width = width * cached_heads.max(1) / heads.max(1);
        let values = keys_and_values * layers * cached_width;
        match kv_type {
            KvType::F16 => 2 * values,
            // ggml's block of 32 values: a byte each, and 16 bits of scale.
            KvType::Q8_0 => values * 34 / 32,
        }
    }

    /// Returns the bytes of the longest text of one token.
    pub fn longest_piece(&self) -> usize {
        self.longest_piece
    }

    fn measured_longest_piece(&self) -> usize {
        let mut bytes = Vec::new();
        let tokens = 0..self.vocabulary_size as Token;
        let lengths = tokens.map(|token| {
            bytes.clear();
            self.append_piece(token, &mut bytes);
            bytes.len()
        });
        lengths.max().unwrap_or(0).max(1)
    }

    /// Returns whether the vocabulary has this token.
    pub fn is_token(&self, token: Token) -> bool {
        usize::try_from(token).is_ok_and(|index| index < self.vocabulary_size)
    }

    fn token_text(&self, token: Token) -> Option<String> {
        if !self.is_token(token) {
            return None;
        }
        let vocabulary = self.vocabulary.as_ptr();
        // SAFETY: the token is within the vocabulary; the text lives as long as that.
        let text = guarded(|| unsafe { calls::llama_vocab_get_text(vocabulary, token) });
        text.ok().and_then(owned_text)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: created by `load`, freed only here; contexts hold the `Arc` and are gone.
        unsafe { sys::llama_model_free(self.model.as_ptr()) };
    }
}

/// Checks the file type first, because llama.cpp's own message is hard to understand.
fn check_is_gguf(path: &Path) -> Result<(), LoadError> {
    use std::io::Read as _;
    let name = path.display();
    let mut magic = [0; 4];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .map_err(|error| {
            LoadError(format!(
                "{name}: {error}; download it with `autoglmd model pull`"
            ))
        })?;
    match &magic {
        b"GGUF" => Ok(()),
        _ => Err(LoadError(format!("{name}: not a GGUF file"))),
    }
}

unsafe extern "C" fn forward_progress(progress: f32, data: *mut c_void) -> bool {
    // SAFETY: `data` is the `progress` of `Model::load`, which waits for this call on its stack.
    let report = unsafe { &mut *data.cast::<&mut dyn FnMut(f32) -> bool>() };
    report(progress)
}

fn owned_text(text: *const c_char) -> Option<String> {
    // SAFETY: if not null, llama.cpp returns a string that ends in NUL.
    (!text.is_null()).then(|| {
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    })
}

//! Round trips over arbitrary cuts, bombs, and bytes that are not a coding at all.

use proptest::prelude::*;

use super::*;
use crate::http::compress::encode::{Compressor, Effort, Encoder, Step, wrap_whole};
use crate::http::compress::testing::code_tables;

const MIB: usize = 1 << 20;

fn wide() -> Bound {
    Bound::of(usize::MAX, 64 * MIB, u32::MAX)
}

fn encoded(coding: Coding, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::stream(coding).unwrap();
    encoder.encode(body, Step::Finish, &mut out).unwrap();
    out
}

fn decoded(coding: Coding, coded: &[u8], bound: Bound) -> Result<Vec<u8>, DecodeError> {
    let mut out = b"old".to_vec();
    decode_body(coding, coded, bound, &mut out).map(|()| out)
}

/// Decodes the body in pieces of the given lengths, and the rest.
fn decoded_in_pieces(
    coding: Coding,
    coded: &[u8],
    cuts: &[usize],
    bound: Bound,
) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = Decoder::new(coding, bound)?;
    let (mut out, mut rest) = (Vec::new(), coded);
    for cut in cuts {
        let (piece, after) = rest.split_at(*cut.min(&rest.len()));
        decoder.decode(piece, &mut out)?;
        rest = after;
    }
    decoder.decode(rest, &mut out)?;
    decoder.finish()?;
    Ok(out)
}

fn any_coding() -> impl Strategy<Value = Coding> {
    prop::sample::select(Coding::ALL.to_vec())
}

/// Text that compresses, bytes that do not, and both.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::collection::vec("(def |return |self\\.|[a-z]{1,6}\n|\u{e9}| {4})", 0..400);
    prop_oneof![
        words.prop_map(|words| words.concat().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..3_000),
        (any::<u8>(), 0..40_000usize).prop_map(|(byte, count)| vec![byte; count]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn flushed_text_can_be_read_at_once_and_cuts_do_not_change_it(
        coding in any_coding(),
        pieces in prop::collection::vec(any_body(), 0..6),
        cuts in prop::collection::vec(0..2_000usize, 0..8),
    ) {
        let mut encoder = Encoder::stream(coding).unwrap();
        let mut decoder = Decoder::new(coding, wide()).unwrap();
        let (mut coded, mut seen, mut said) = (Vec::new(), Vec::new(), Vec::new());
        for piece in &pieces {
            let start = coded.len();
            encoder.encode(piece, Step::Flush, &mut coded).unwrap();
            said.extend_from_slice(piece);
            decoder.decode(&coded[start..], &mut seen).unwrap();
            prop_assert_eq!(&seen, &said, "an event waits for a later one");
        }
        let start = coded.len();
        encoder.encode(b"", Step::Finish, &mut coded).unwrap();
        prop_assert_eq!(decoder.finish(), Err(DecodeError::Truncated));
        decoder.decode(&coded[start..], &mut seen).unwrap();
        prop_assert_eq!(decoder.finish(), Ok(()));
        prop_assert_eq!(&seen, &said);
        let cut = decoded_in_pieces(coding, &coded, &cuts, wide());
        prop_assert_eq!(cut.as_ref(), Ok(&said));
    }

    #[test]
    fn whole_bodies_come_back_and_are_shorter_or_left_alone(
        coding in any_coding(),
        bodies in prop::collection::vec(any_body(), 1..4),
        kept in any::<bool>(),
    ) {
        let effort = if kept { Effort::Kept } else { Effort::Quick };
        let mut compressor = Compressor::default();
        let mut out = Vec::new();
        for body in &bodies {
            if compressor.compress(coding, effort, body, &mut out) {
                prop_assert!(out.len() < body.len());
                let back = decoded(coding, &out, wide());
                prop_assert_eq!(back.as_ref(), Ok(body));
            }
        }
    }

    /// Random bytes, and damaged coded bytes: the verdict is the same however they are cut, and the
    /// output never exceeds the bound.
    #[test]
    fn cuts_do_not_change_whether_hostile_bytes_are_refused(
        coding in any_coding(),
        body in any_body(),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        place in any::<prop::sample::Index>(),
        is_spoilt in any::<bool>(),
        bytes_most in 0..4_000usize,
        cuts in prop::collection::vec(0..500usize, 0..8),
    ) {
        let mut coded = noise;
        if is_spoilt {
            coded = encoded(coding, &body);
            let place = place.index(coded.len());
            coded[place] ^= 1 << (place % 8);
        }
        let bound = Bound::of(coded.len(), bytes_most, 100);
        let whole = decoded(coding, &coded, bound);
        prop_assert!(whole.as_ref().is_ok_and(|out| out.len() <= bytes_most) || whole.is_err());
        let cut = decoded_in_pieces(coding, &coded, &cuts, bound);
        // Cuts may decide which comes first, the bound or the error, but not whether it is refused.
        prop_assert_eq!(whole.is_ok(), cut.is_ok());
        prop_assert!(whole.is_err() || whole == cut);
    }
}

#[test]
fn text_becomes_much_smaller_and_noise_does_not_grow() {
    let text = include_bytes!("tests.rs");
    let mut noise = vec![0u8; 4_096];
    let mut state = 1u64;
    for byte in &mut noise {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let mut compressor = Compressor::default();
    let mut out = Vec::new();
    for coding in Coding::ALL {
        for effort in [Effort::Quick, Effort::Kept] {
            assert!(compressor.compress(coding, effort, text, &mut out));
            assert!(out.len() * 2 < text.len(), "{coding:?}: {}", out.len());
            assert_eq!(decoded(coding, &out, wide()).unwrap(), text);
            for small in [&noise[..], b"", b"ok\n"] {
                assert!(!compressor.compress(coding, effort, small, &mut out));
            }
            // A failed attempt leaves nothing behind.
            assert!(compressor.compress(coding, effort, text, &mut out));
            assert_eq!(decoded(coding, &out, wide()).unwrap(), text);
        }
    }
}

#[test]
fn bombs_stop_at_the_bound() {
    let zeros = vec![0; 8 * MIB];
    for coding in Coding::ALL {
        let bomb = encoded(coding, &zeros);
        assert!(bomb.len() < 10 * 1024, "{coding:?}: {}", bomb.len());
        for (bytes_most, ratio_most, expected) in [
            (MIB, u32::MAX, DecodeError::TooLarge),
            (usize::MAX / 2, 100, DecodeError::TooDense),
            (8 * MIB - 1, u32::MAX, DecodeError::TooLarge),
        ] {
            let bound = Bound::of(bomb.len(), bytes_most, ratio_most);
            let mut decoder = Decoder::new(coding, bound).unwrap();
            let mut out = Vec::new();
            assert_eq!(decoder.decode(&bomb, &mut out), Err(expected), "{coding:?}");
            assert_eq!(out.len(), bound.output_most + 1, "{coding:?}");
            assert!(out.capacity() <= 2 * (bound.output_most + limits::DECODER_ROOM_BYTES));
        }
        let exact = Bound::of(bomb.len(), 8 * MIB, u32::MAX);
        assert_eq!(decoded(coding, &bomb, exact).unwrap().len(), 8 * MIB);
    }
}

/// From the reference encoder at its highest quality: uses words of the static dictionary.
#[test]
fn brotli_of_the_reference_encoder_is_read() {
    let coded = "1b5500308cd462cd19eea4274bf57b562bcd6ed804a5d3071b70c0bab4c0e2138c3c6cc011661b3c\
                 f040dd67b5b29640716839cacfa58d56604f1870c648419c01";
    let bytes = coded.as_bytes().chunks(2);
    let bytes = bytes.map(|digits| std::str::from_utf8(digits).unwrap());
    let bytes: Vec<u8> = bytes
        .map(|digits| u8::from_str_radix(digits, 16).unwrap())
        .collect();
    let expected = "{\"prompt\": \"write a function that returns the larger of two integers, \
                    the larger one\"}";
    let found = decoded(Coding::Brotli, &bytes, wide()).unwrap();
    assert_eq!(found, expected.as_bytes());
}

#[test]
fn a_small_body_may_be_as_dense_as_it_likes() {
    let spaces = vec![b' '; limits::INFLATE_FREE_BYTES];
    for coding in Coding::ALL {
        let coded = encoded(coding, &spaces);
        assert!(coded.len() * 100 < spaces.len());
        let bound = Bound::of(coded.len(), MIB, 10);
        assert_eq!(decoded(coding, &coded, bound).unwrap(), spaces);
        let coded = encoded(coding, &[&spaces[..], b" "].concat());
        let error = decoded(coding, &coded, Bound::of(coded.len(), MIB, 10));
        assert_eq!(error, Err(DecodeError::TooDense), "{coding:?}");
    }
}

#[test]
fn truncated_bodies_and_bytes_after_the_end_are_different_errors() {
    let body = b"some text that is long enough to have a middle".as_slice();
    for coding in Coding::ALL {
        let coded = encoded(coding, body);
        for end in 0..coded.len() {
            let error = decoded(coding, &coded[..end], wide()).unwrap_err();
            assert_eq!(error, DecodeError::Truncated, "{coding:?} up to {end}");
        }
        let behind = [&coded[..], b"garbage behind the end"].concat();
        let error = decoded(coding, &behind, wide());
        assert_eq!(error, Err(DecodeError::Malformed), "{coding:?}");
        let plain = decoded(coding, body, wide());
        assert_eq!(plain, Err(DecodeError::Malformed), "{coding:?}");
    }
}

#[test]
fn members_follow_each_other_in_bounded_number() {
    for (coding, may) in [
        (Coding::Gzip, true),
        (Coding::Zstd, true),
        (Coding::Brotli, false),
        (Coding::Deflate, false),
    ] {
        let two = [encoded(coding, b"one "), encoded(coding, b"two")].concat();
        let expected = match may {
            true => Ok(b"one two".to_vec()),
            false => Err(DecodeError::Malformed),
        };
        assert_eq!(decoded(coding, &two, wide()), expected, "{coding:?}");
        let bytewise = vec![1; two.len()];
        assert_eq!(decoded_in_pieces(coding, &two, &bytewise, wide()), expected);
        if may {
            let most = limits::CODED_MEMBERS_MAX as usize;
            let empty = encoded(coding, b"");
            assert_eq!(decoded(coding, &empty.repeat(most), wide()), Ok(vec![]));
            let error = decoded(coding, &empty.repeat(most + 1), wide());
            assert_eq!(error, Err(DecodeError::Malformed), "{coding:?}");
        }
    }
}

#[test]
fn windows_beyond_the_formats_own_are_refused() {
    // RFC 8878, section 3.1.1.1.2: a window descriptor of exponent 13 is 2^23 bytes.
    let frame = |descriptor: u8| {
        let raw_block_of_one_byte_last = [0x09, 0, 0, b'x'];
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0x00, descriptor];
        [&head[..], &raw_block_of_one_byte_last].concat()
    };
    let within = decoded(Coding::Zstd, &frame(13 << 3), wide());
    assert_eq!(within, Ok(b"x".to_vec()));
    for exponent in [14, 21] {
        let beyond = decoded(Coding::Zstd, &frame(exponent << 3), wide());
        assert_eq!(beyond, Err(DecodeError::WindowTooLarge));
    }
    // Brotli's large windows begin with these bits (0x11), which RFC 7932 leaves undefined.
    let beyond = decoded(Coding::Brotli, &[0x11, 0x1e, 0x03], wide());
    assert_eq!(beyond, Err(DecodeError::Malformed));
}

/// Of all ways to spend a decoder's time, this one costs most per input byte.
#[test]
fn tables_without_text_are_the_worst() {
    let blocks = 1_000;
    let tables = code_tables(&[0x78, 0x9c], blocks);
    assert!(tables.len() < blocks * 40);
    let mut decoder = Decoder::new(Coding::Deflate, wide()).unwrap();
    let mut out = Vec::new();
    assert_eq!(decoder.decode(&tables, &mut out), Ok(()));
    assert_eq!(
        (out.len(), decoder.finish()),
        (0, Err(DecodeError::Truncated))
    );
}

/// Mutations: the length of a meta-block that is off by one; a last block without its end.
#[test]
fn bodies_that_are_only_wrapped_come_back() {
    let text: Vec<u8> = (0..200_000_u32)
        .map(|number| (number * 7 % 251) as u8)
        .collect();
    for length in [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000] {
        for coding in Coding::ALL {
            let (mut wrapped, mut back) = (Vec::new(), Vec::new());
            assert!(wrap_whole(coding, &text[..length], &mut wrapped).is_ok());
            let bound = Bound::of(usize::MAX, 1 << 24, u32::MAX);
            decode_body(coding, &wrapped, bound, &mut back).unwrap();
            assert!(back == text[..length], "{} {length}", coding.name());
            assert!(wrapped.len() <= length + 64, "{} {length}", coding.name());
        }
    }
}

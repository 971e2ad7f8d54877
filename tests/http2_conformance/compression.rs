//! RFC 7541: HPACK, as the server decodes it. An error in it ends the whole connection with
//! COMPRESSION_ERROR (RFC 9113, section 4.3).

use super::common::http2::frame::code::COMPRESSION_ERROR;
use super::common::http2::hpack::{
    DYNAMIC_FIRST, ENTRY_OVERHEAD, TABLE_BYTES_DEFAULT, huffman, huffman_raw, huffman_string,
    huffman_with_eos, huffman_zero_padded, indexed, integer, literal, literal_indexed,
    literal_indexed_name, literal_name, literal_never, literal_never_name, size_update, string,
};
use super::common::http2::{Outcome, Peer, ensure, index};
use super::{Case, case};

/// `x-kept`, whose entry the cases check.
const KEPT: (&str, &str) = ("x-kept", "kept");

pub const CASES: &[Case] = &[
    // ---- 2.3: tables ----
    case("rfc7541_2_3_1_every_name_of_the_static_table", |peer| {
        // Names of fields without meaning in a request to us, each with a value.
        for (number, name) in (15..=61).filter(|name| is_harmless(*name)).enumerate() {
            let stream = 2 * number as u32 + 1;
            let block = [peer.target().get(), literal_name(name, "1")].concat();
            peer.headers(stream, &block);
            let status = peer.answer(stream)?.status;
            ensure(status == 200, || format!("{status} for index {name}"))?;
        }
        Ok(())
    }),
    case("rfc7541_2_3_2_entries_are_kept_over_requests", |peer| {
        accepted(peer, 1, &literal_indexed(KEPT.0, KEPT.1))?;
        accepted(peer, 3, &indexed(DYNAMIC_FIRST))?;
        accepted(peer, 5, &literal_name(DYNAMIC_FIRST, "other"))?;
        peer.works(7)
    }),
    case("rfc7541_2_3_3_newest_entry_comes_first", |peer| {
        // The path is the older of two entries, and only the path is served.
        let path = peer.target().small;
        let entries = [
            literal_indexed_name(index::PATH, &path),
            literal_indexed("x-a", "b"),
        ];
        let block = [
            pseudo_but_path(),
            entries[0].clone(),
            authority(),
            entries[1].clone(),
        ];
        peer.headers(1, &block.concat());
        peer.answer_of(1, 200)?;
        let block = [pseudo_but_path(), indexed(DYNAMIC_FIRST + 1), authority()];
        peer.headers(3, &block.concat());
        peer.answer_of(3, 200)?;
        peer.alive()
    }),
    case(
        "rfc7541_2_3_3_whole_request_from_the_dynamic_table",
        |peer| {
            let path = peer.target().small;
            let block = [
                literal_indexed(":method", "GET"),
                literal_indexed(":scheme", "http"),
                literal_indexed(":path", path),
                literal_indexed(":authority", "localhost"),
            ];
            peer.headers(1, &block.concat());
            peer.answer_of(1, 200)?;
            let block: Vec<u8> = (0..4)
                .rev()
                .flat_map(|at| indexed(DYNAMIC_FIRST + at))
                .collect();
            peer.headers(3, &block);
            peer.answer_of(3, 200)?;
            peer.works(5)
        },
    ),
    case("rfc7541_2_3_3_index_behind_the_tables", |peer| {
        broken(peer, &indexed(DYNAMIC_FIRST))
    }),
    case("rfc7541_2_3_3_index_behind_the_last_entry", |peer| {
        accepted(peer, 1, &literal_indexed(KEPT.0, KEPT.1))?;
        broken_on(peer, 3, &indexed(DYNAMIC_FIRST + 1))
    }),
    case("rfc7541_2_3_3_far_index", |peer| {
        broken(peer, &indexed(1_000_000))
    }),
    case("rfc7541_2_3_3_name_index_behind_the_tables", |peer| {
        broken(peer, &literal_name(DYNAMIC_FIRST, "1"))
    }),
    case(
        "rfc7541_2_3_3_name_index_behind_the_tables_to_be_indexed",
        |peer| broken(peer, &literal_indexed_name(DYNAMIC_FIRST + 7, "1")),
    ),
    case(
        "rfc7541_2_3_3_name_index_behind_the_tables_never_indexed",
        |peer| broken(peer, &literal_never_name(200, "1")),
    ),
    // ---- 4: the size of the table ----
    case("rfc7541_4_2_size_update_at_the_beginning", |peer| {
        let block = [size_update(0), size_update(4_096), peer.target().get()].concat();
        peer.headers(1, &block);
        peer.answer_of(1, 200)?;
        accepted(peer, 3, &literal_indexed(KEPT.0, KEPT.1))?;
        accepted(peer, 5, &indexed(DYNAMIC_FIRST))
    }),
    case("rfc7541_4_2_size_update_behind_a_field", |peer| {
        broken(peer, &size_update(0))
    }),
    case("rfc7541_4_2_size_update_between_fields", |peer| {
        let block = [
            indexed(index::METHOD_GET),
            size_update(100),
            peer.target().get(),
        ];
        peer.headers(1, &block.concat());
        peer.goaway(&[COMPRESSION_ERROR])
    }),
    case("rfc7541_6_3_size_update_above_the_limit", |peer| {
        let block = [
            size_update(TABLE_BYTES_DEFAULT as u64 + 1),
            peer.target().get(),
        ]
        .concat();
        peer.headers(1, &block);
        peer.goaway(&[COMPRESSION_ERROR])
    }),
    case("rfc7541_6_3_size_update_far_above_the_limit", |peer| {
        let block = [size_update(u32::MAX.into()), peer.target().get()].concat();
        peer.headers(1, &block);
        peer.goaway(&[COMPRESSION_ERROR])
    }),
    case("rfc7541_6_3_size_update_alone_in_its_block", |peer| {
        // A block without fields is a request without any, but the table shrinks all the same.
        accepted(peer, 1, &literal_indexed(KEPT.0, KEPT.1))?;
        peer.headers(3, &size_update(0));
        peer.malformed(3)?;
        broken_on(peer, 5, &indexed(DYNAMIC_FIRST))
    }),
    case("rfc7541_4_3_size_of_0_empties_the_table", |peer| {
        accepted(peer, 1, &literal_indexed(KEPT.0, KEPT.1))?;
        let block = [size_update(0), size_update(4_096), peer.target().get()].concat();
        peer.headers(3, &block);
        peer.answer_of(3, 200)?;
        broken_on(peer, 5, &indexed(DYNAMIC_FIRST))
    }),
    case("rfc7541_4_3_smaller_size_evicts_the_oldest", |peer| {
        // Three entries of 40 bytes each; two fit into 80.
        let entry = |name| literal_indexed(name, "1234");
        let three = [entry("x-aa"), entry("x-bb"), entry("x-cc")].concat();
        accepted(peer, 1, &three)?;
        let get = peer.target().get();
        let last = indexed(DYNAMIC_FIRST + 1);
        peer.headers(3, &[size_update(80), get, last].concat());
        peer.answer_of(3, 200)?;
        broken_on(peer, 5, &indexed(DYNAMIC_FIRST + 2))
    }),
    case("rfc7541_4_4_new_entries_evict_the_oldest", |peer| {
        accepted(peer, 1, &literal_indexed(KEPT.0, KEPT.1))?;
        let value = "v".repeat(TABLE_BYTES_DEFAULT - ENTRY_OVERHEAD - "x-full".len());
        accepted(peer, 3, &literal_indexed("x-full", value))?;
        accepted(peer, 5, &indexed(DYNAMIC_FIRST))?;
        broken_on(peer, 7, &indexed(DYNAMIC_FIRST + 1))
    }),
    case(
        "rfc7541_4_4_entry_larger_than_the_table_empties_it",
        |peer| {
            accepted(peer, 1, &literal_indexed(KEPT.0, KEPT.1))?;
            let value = "v".repeat(TABLE_BYTES_DEFAULT - ENTRY_OVERHEAD - "x-full".len() + 1);
            accepted(peer, 3, &literal_indexed("x-full", value))?;
            broken_on(peer, 5, &indexed(DYNAMIC_FIRST))
        },
    ),
    case(
        "rfc7541_4_4_name_of_an_entry_that_this_insertion_evicts",
        |peer| {
            let name = "n".repeat(100);
            accepted(peer, 1, &literal_indexed(&name, "1"))?;
            let value = "v".repeat(TABLE_BYTES_DEFAULT - ENTRY_OVERHEAD - name.len());
            accepted(peer, 3, &literal_indexed_name(DYNAMIC_FIRST, value))?;
            accepted(peer, 5, &indexed(DYNAMIC_FIRST))
        },
    ),
    case("rfc7541_4_1_equal_entries_are_two", |peer| {
        accepted(peer, 1, &literal_indexed(KEPT.0, KEPT.1).repeat(2))?;
        accepted(peer, 3, &indexed(DYNAMIC_FIRST + 1))
    }),
    // ---- 5.1: integers ----
    case("rfc7541_5_1_integer_with_needless_zeros", |peer| {
        // 31 + 0x80-padded zero: a length of 127 written with one byte more than necessary.
        let value = "v".repeat(127);
        let length = [0x7f, 0x80, 0x00];
        let block = [&[0][..], &string("x-long"), &length, value.as_bytes()].concat();
        accepted(peer, 1, &block)
    }),
    case("rfc7541_5_1_integer_at_the_edge_of_its_prefix", |peer| {
        for (number, length) in [126, 127, 128, 254, 255, 256].into_iter().enumerate() {
            accepted(
                peer,
                2 * number as u32 + 1,
                &literal("x-edge", "v".repeat(length)),
            )?;
        }
        Ok(())
    }),
    case("rfc7541_5_1_integer_of_32_bits", |peer| {
        broken(
            peer,
            &[
                &[0][..],
                &string("x"),
                &[0x7f, 0x80, 0xff, 0xff, 0xff, 0x0f],
            ]
            .concat(),
        )
    }),
    case("rfc7541_5_1_integer_beyond_64_bits", |peer| {
        let length = [&[0x7f][..], &[0xff; 10], &[0x01]].concat();
        broken(peer, &[&[0][..], &string("x"), &length].concat())
    }),
    case("rfc7541_5_1_integer_without_end", |peer| {
        broken(peer, &[&[0xff][..], &[0x80; 200], &[0]].concat())
    }),
    case(
        "rfc7541_5_1_integer_that_wraps_around_to_a_good_index",
        |peer| {
            // 2^32 + 2 as an index: a decoder with 32 bits sees `:method: GET`.
            broken(peer, &integer(0x80, 7, (1 << 32) + 2))
        },
    ),
    case("rfc7541_5_1_integer_cut_off", |peer| broken(peer, &[0xff])),
    // ---- 5.2: strings ----
    case("rfc7541_5_2_huffman_names_and_values", |peer| {
        let path = peer.target().small;
        let block = [
            indexed(index::METHOD_GET),
            indexed(index::SCHEME_HTTP),
            [integer(0, 4, index::PATH), huffman_string(&path)].concat(),
            [
                integer(0x40, 6, index::AUTHORITY),
                huffman_string("localhost"),
            ]
            .concat(),
            [
                &[0x40][..],
                &huffman_string("x-name"),
                &huffman_string("A~|{}\"value"),
            ]
            .concat(),
        ];
        peer.headers(1, &block.concat());
        peer.answer_of(1, 200)?;
        accepted(peer, 3, &indexed(DYNAMIC_FIRST))
    }),
    case("rfc7541_5_2_huffman_of_every_byte_of_text", |peer| {
        let text: Vec<u8> = (0x21..=0x7e).chain(0x80..=0xff).collect();
        accepted(
            peer,
            1,
            &[&[0][..], &string("x-text"), &huffman_string(&text)].concat(),
        )
    }),
    case("rfc7541_5_2_huffman_of_nothing", |peer| {
        accepted(
            peer,
            1,
            &[&[0][..], &string("x-empty"), &huffman_string("")].concat(),
        )
    }),
    case("rfc7541_5_2_huffman_padding_of_zeros", |peer| {
        huffman_value(peer, &huffman_zero_padded(b"a"))
    }),
    case("rfc7541_5_2_huffman_padding_of_mixed_bits", |peer| {
        let mut coded = huffman(b"a");
        *coded.last_mut().expect("one byte") ^= 0b010;
        huffman_value(peer, &coded)
    }),
    case("rfc7541_5_2_huffman_padding_of_a_whole_byte", |peer| {
        huffman_value(peer, &[huffman(b"aa"), vec![0xff]].concat())
    }),
    case("rfc7541_5_2_huffman_padding_alone", |peer| {
        huffman_value(peer, &[0xff])
    }),
    case("rfc7541_5_2_huffman_eos", |peer| {
        huffman_value(peer, &huffman_with_eos(b"a"))
    }),
    case("rfc7541_5_2_huffman_eos_in_the_middle", |peer| {
        let coded = huffman_with_eos(b"");
        huffman_value(peer, &[coded, huffman(b"evil")].concat())
    }),
    case("rfc7541_5_2_huffman_error_in_a_name", |peer| {
        let name = huffman_raw(&huffman_zero_padded(b"x-a"));
        broken(peer, &[&[0][..], &name, &string("1")].concat())
    }),
    case(
        "rfc7541_5_2_huffman_of_a_control_character_in_a_value",
        |peer| {
            // Not an error of compression: the field is malformed.
            let block = [&[0][..], &string("x-a"), &huffman_string("a\nb")].concat();
            let block = [peer.target().get(), block].concat();
            peer.headers(1, &block);
            peer.malformed_or_goaway(1).map(drop)
        },
    ),
    case("rfc7541_5_2_string_longer_than_the_block", |peer| {
        broken(peer, &[&[0][..], &string("x-a"), &[100], b"short"].concat())
    }),
    case("rfc7541_5_2_name_longer_than_the_block", |peer| {
        broken(peer, &[&[0x40][..], &[50], b"short"].concat())
    }),
    case("rfc7541_5_2_literal_without_a_value", |peer| {
        broken(peer, &[&[0][..], &string("x-a")].concat())
    }),
    // ---- 6: representations ----
    case("rfc7541_6_1_index_0", |peer| broken(peer, &indexed(0))),
    case("rfc7541_6_1_index_0_of_many_bytes", |peer| {
        // 127 + 0 is index 127, which does not exist either.
        broken(peer, &[0xff, 0x00])
    }),
    case("rfc7541_6_2_1_literal_with_indexing", |peer| {
        accepted(peer, 1, &literal_indexed("x-a", "1"))?;
        accepted(peer, 3, &indexed(DYNAMIC_FIRST))
    }),
    case(
        "rfc7541_6_2_2_literal_without_indexing_is_not_kept",
        |peer| {
            accepted(peer, 1, &literal("x-a", "1"))?;
            broken_on(peer, 3, &indexed(DYNAMIC_FIRST))
        },
    ),
    case("rfc7541_6_2_3_literal_never_indexed", |peer| {
        accepted(peer, 1, &literal_never("x-secret", "1"))?;
        accepted(peer, 3, &literal_never_name(23, "Bearer x"))?;
        broken_on(peer, 5, &indexed(DYNAMIC_FIRST))
    }),
    case("rfc7541_3_2_fields_of_one_name_stay_in_order", |peer| {
        let list = [
            literal("x-a", "1"),
            literal_indexed("x-a", "2"),
            literal_never("x-a", "3"),
        ];
        accepted(peer, 1, &list.concat())
    }),
];

/// A good GET with these representations gets status 200.
fn accepted(peer: &mut Peer, stream: u32, more: &[u8]) -> Outcome {
    let block = [peer.target().get().as_slice(), more].concat();
    peer.headers(stream, &block);
    peer.answer_of(stream, 200)?;
    peer.alive()
}

/// A good GET with these representations cannot be decoded.
fn broken(peer: &mut Peer, more: &[u8]) -> Outcome {
    broken_on(peer, 1, more)
}

fn broken_on(peer: &mut Peer, stream: u32, more: &[u8]) -> Outcome {
    let block = [peer.target().get().as_slice(), more].concat();
    peer.headers(stream, &block);
    peer.goaway(&[COMPRESSION_ERROR])
}

fn huffman_value(peer: &mut Peer, coded: &[u8]) -> Outcome {
    broken(
        peer,
        &[&[0][..], &string("x-a"), &huffman_raw(coded)].concat(),
    )
}

fn pseudo_but_path() -> Vec<u8> {
    [indexed(index::METHOD_GET), indexed(index::SCHEME_HTTP)].concat()
}

fn authority() -> Vec<u8> {
    literal_name(index::AUTHORITY, "localhost")
}

/// Entries whose field, with the value `1`, changes nothing about a GET of a small page.
fn is_harmless(name: u64) -> bool {
    const MEANS_SOMETHING: [u64; 14] = [
        16, // accept-encoding
        19, // accept
        28, // content-length
        26, // content-encoding
        35, // expect
        38, // host
        39, // if-match
        40, // if-modified-since
        41, // if-none-match
        42, // if-range
        43, // if-unmodified-since
        50, // range
        57, // transfer-encoding
        23, // authorization
    ];
    !MEANS_SOMETHING.contains(&name)
}

//! Header fields for the tests of this crate.

/// Builds fields as a request holds them, from names and values.
pub fn headers<'a>(fields: &[(&'a str, &'a str)]) -> Vec<httparse::Header<'a>> {
    let header = |&(name, value): &(&'a str, &'a str)| httparse::Header {
        name,
        value: value.as_bytes(),
    };
    fields.iter().map(header).collect()
}

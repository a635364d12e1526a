//! The `tojson` filter as `transformers` defines it: `json.dumps` without HTML escapes, non-ASCII left as it is, keys in
//! their own order. Python's separators matter: a model saw `{"a": 1}` in training, not `{"a":1}`.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value as Jinja};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use super::budget::{MAX_BUILT_BYTES, too_much};
use super::engine::BoundedOutput;
use super::python;

const MAX_INDENT: usize = 16;

pub(super) fn filter(value: &Jinja, indent: Option<usize>, options: Kwargs) -> Result<Jinja, Error> {
    let indent = options.get::<Option<usize>>("indent")?.or(indent);
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent is too large"));
    }
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson: the value is undefined"));
    }
    let format = PythonFormat::new(indent, ascii, separators)?;
    let bad = |error: serde_json::Error| match error.is_io() {
        true => too_much(),
        false => Error::new(ErrorKind::BadSerialization, "tojson failed").with_source(error),
    };
    let mut output = BoundedOutput::new(MAX_BUILT_BYTES);
    value.serialize(&mut Serializer::with_formatter(&mut output, format.clone())).map_err(bad)?;
    if sorted {
        // Only what has an end as it is can be put in order.
        let mut tree = serde_json::to_value(value).map_err(bad)?;
        tree.sort_all_objects();
        output = BoundedOutput::new(MAX_BUILT_BYTES);
        tree.serialize(&mut Serializer::with_formatter(&mut output, format)).map_err(bad)?;
    }
    let not_text = |_| Error::new(ErrorKind::BadSerialization, "tojson: not text");
    Ok(Jinja::from(String::from_utf8(output.bytes).map_err(not_text)?))
}

/// `json.dumps`' layout.
#[derive(Clone)]
struct PythonFormat {
    item_separator: String,
    key_separator: String,
    indent: Option<usize>,
    ascii: bool,
    depth: usize,
    has_items: bool,
}

impl PythonFormat {
    fn new(indent: Option<usize>, ascii: bool, separators: Option<Vec<String>>) -> Result<Self, Error> {
        let default_item = if indent.is_some() { "," } else { ", " };
        let (item_separator, key_separator) = match separators.as_deref() {
            None => (default_item.to_owned(), ": ".to_owned()),
            Some([item, key]) => (item.clone(), key.clone()),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two strings")),
        };
        Ok(Self { item_separator, key_separator, indent, ascii, depth: 0, has_items: false })
    }

    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_items = false;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_items {
            self.new_line(writer)?;
        }
        self.has_items = true;
        writer.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item_separator.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(writer, "\n{:1$}", "", indent * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for PythonFormat {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python::float_repr(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if c.is_ascii() {
                writer.write_all(&[c as u8])?;
            } else {
                c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        // Python leaves DEL and the slash as they are, as serde_json does; control characters agree too.
        serde_json::ser::CompactFormatter.write_char_escape(writer, escape)
    }
}

"""Files whose lengths are not true: refused before SimpleITK's libraries take memory for them.

Without that these files take gigabytes, and some of them end the process.
"""

import io
import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow

from diffreg.data.images import read_image

# DICOM

PIXELS = np.arange(30, dtype=np.uint16).reshape(5, 6)
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
SYNTAXES = [IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED]
UNDEFINED = 0xFFFFFFFF


class Writer:
    """Data elements as a transfer syntax has them."""

    def __init__(self, syntax):
        self.syntax = syntax
        self.order = ">" if syntax == BIG_ENDIAN else "<"

    def element(self, tag, kind, value=b"", length=None):
        numbers = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(numbers, list):
            value = struct.pack(f"{self.order}{len(numbers)}H", *numbers)
        elif isinstance(numbers, str):
            value = numbers.encode() + b"\0" * (len(numbers) % 2)
        head = struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        length = len(value) if length is None else length
        if self.syntax == IMPLICIT or kind == "":
            return head + struct.pack(self.order + "I", length) + value
        form = "HI" if kind in ("OB", "OW", "SQ", "UN") else "H"
        length = struct.pack(self.order + form, *[0] * (len(form) - 1), length)
        return head + kind.encode() + length + value

    def item(self, content, length=None):
        return self.element(0xFFFEE000, "", content, length)

    def file(self, extra=b"", rows=5, columns=6, pixels=None):
        """A slice, `extra` elements before its size."""
        head = Writer(EXPLICIT)
        meta = [
            head.element(0x00020002, "UI", "1.2.840.10008.5.1.4.1.1.2"),
            head.element(0x00020003, "UI", "1.2.3.4"),
            head.element(0x00020010, "UI", self.syntax),
        ]
        size = struct.pack("<I", sum(map(len, meta)))
        content = [
            self.element(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.2"),
            self.element(0x00080018, "UI", "1.2.3.4"),
            self.element(0x00080060, "CS", "CT"),
            extra,
            self.element(0x00280002, "US", [1]),
            self.element(0x00280004, "CS", "MONOCHROME2 "),
            self.element(0x00280010, "US", [rows]),
            self.element(0x00280011, "US", [columns]),
            self.element(0x00280100, "US", [16]),
            self.element(0x00280101, "US", [16]),
            self.element(0x00280102, "US", [15]),
            self.element(0x00280103, "US", [0]),
            pixels or self.element(0x7FE00010, "OW", PIXELS.ravel()),
        ]
        content = b"".join(content)
        if self.syntax == DEFLATED:
            packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            content = packer.compress(content) + packer.flush()
        first = head.element(0x00020000, "UL", size)
        return bytes(128) + b"DICM" + first + b"".join(meta) + content


def nested(writer, levels, content=b"", defined=True):
    """Sequences in sequences."""
    for _ in range(levels):
        item = writer.item(content, None if defined else UNDEFINED)
        if not defined:
            item += writer.element(0xFFFEE00D, "") + writer.element(0xFFFEE0DD, "")
        content = writer.element(0x00081140, "SQ", item, None if defined else UNDEFINED)
    return content


def read(tmp_path, content, name="a.dcm"):
    (tmp_path / name).write_bytes(content)
    return read_image(tmp_path / name)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_each_transfer_syntax_is_read(syntax, tmp_path):
    writer = Writer(syntax)
    private = writer.element(0x00090010, "LO", "SOMEBODY")
    private += writer.element(0x00091010, "UN", bytes(10))
    for extra in (b"", private, nested(writer, 5), nested(writer, 5, private, defined=False)):
        image = read(tmp_path, writer.file(extra))
        assert np.array_equal(image.data[0, 0].numpy(), PIXELS.T)


@pytest.mark.parametrize("tail", [b"\0", bytes(2000)], ids=len)
def test_zeros_that_fill_up_a_file_do_no_harm(tail, tmp_path):
    image = read(tmp_path, Writer(EXPLICIT).file() + tail)
    assert np.array_equal(image.data[0, 0].numpy(), PIXELS.T)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_element_is_not_longer_than_its_file(syntax, tmp_path):
    writer = Writer(syntax)
    long = writer.element(0x00091010, "UN", bytes(10), 1_200_000_000)
    message = r"data element \(0009,1010\) at byte \d+ claims 1,200,000,000 bytes, \d+ are left$"
    for extra in (long, nested(writer, 2, long, defined=False)):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, writer.file(extra))


def compressed(tmp_path, compressor):
    """A file of SimpleITK's with pixels in a code, and that it is read."""
    array = np.add.outer(np.arange(40), 3 * np.arange(50)).astype(np.uint8)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(tmp_path / "coded.dcm")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(array))
    image = read_image(tmp_path / "coded.dcm")
    assert np.array_equal(image.data[0, 0].numpy().T, array)
    return bytearray((tmp_path / "coded.dcm").read_bytes())


def larger_jpeg(content):
    at = next(at for at in range(len(content)) if content[at : at + 3] == b"\xff\xc3\0")
    struct.pack_into(">HH", content, at + 5, 60000, 60000)


def larger_jpeg_2000(content):
    struct.pack_into(">II", content, content.index(b"\xff\x4f\xff\x51") + 8, 60000, 60000)
    struct.pack_into(">II", content, content.index(b"\xff\x4f\xff\x51") + 24, 60000, 60000)


def many_tiles(content):
    struct.pack_into(">II", content, content.index(b"\xff\x4f\xff\x51") + 24, 1, 1)


def a_long_fragment(content):
    at = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00") + 20)
    struct.pack_into("<I", content, at + 4, 4_000_000_000)


@pytest.mark.parametrize(
    ("compressor", "damage", "message"),
    [
        ("JPEG", larger_jpeg, "header claims 3,600,000,000 bytes of numbers, the file has"),
        ("JPEG2000", larger_jpeg_2000, "header claims 3,600,000,000 bytes of numbers"),
        ("JPEG2000", many_tiles, "compressed pixels claim 2,000 tiles in"),
        ("JPEG2000", a_long_fragment, r"pixels end early: \(fffe,e000\) claims 4,000,000,000"),
    ],
)
def test_compressed_pixels_are_no_larger_than_their_file_allows(
    compressor, damage, message, tmp_path
):
    content = compressed(tmp_path, compressor)
    damage(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, bytes(content))


def hostile_elements():
    """What is refused of a file of explicit elements, and in which words."""
    writer = Writer(EXPLICIT)
    item = writer.item(bytes(2), 400)
    return {
        "deep": (nested(writer, 51), "its sequences lie in each other, more than 50 deep"),
        "item": (writer.element(0x00081140, "SQ", item), r"\(fffe,e000\) at byte \d+ is no item"),
        "short item": (
            writer.element(0x00081140, "SQ", writer.item(bytes(2), 2)),
            r"an item's data elements do not end by byte \d+, as it does",
        ),
        "without an end": (
            writer.element(0x00081140, "SQ", writer.item(nested(writer, 1, defined=False)[:-8])),
            r"a sequence has no end mark by byte \d+",
        ),
        "alone": (writer.item(b""), r"\(fffe,e000\) at byte \d+ stands outside of a sequence"),
        "implicit": (
            Writer(IMPLICIT).element(0x00091010, "UN", bytes(4)),
            r"\(0009,1010\) at byte \d+ has no value representation, .* anew, as by gdcmconv",
        ),
    }


@pytest.mark.parametrize("name", hostile_elements())
def test_elements_that_would_be_guessed_at_are_refused(name, tmp_path):
    extra, message = hostile_elements()[name]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, Writer(EXPLICIT).file(extra))


def test_a_few_bytes_more_are_no_element(tmp_path):
    """GDCM would begin anew, with bytes in the other order as lengths."""
    with pytest.raises(ValueError, match="is damaged or no such file: it ends within an element"):
        read(tmp_path, Writer(BIG_ENDIAN).file() + b"\x16\x9d\x19\x00\x12")


def test_a_slice_is_no_larger_than_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"header claims 32,000,000 bytes of numbers, the file"):
        read(tmp_path, Writer(EXPLICIT).file(rows=16000, columns=16000))


def test_a_damaged_file_of_a_folder_is_named(tmp_path):
    """Rather than left out: the series would be shorter."""
    writer = Writer(EXPLICIT)
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct/1").write_bytes(writer.file())
    (tmp_path / "ct/2").write_bytes(writer.file()[:-20])
    with pytest.raises(ValueError, match=r"ct/2 is damaged .* claims 60 bytes, 40 are left"):
        read_image(tmp_path / "ct")


# TIFF


def tiff(order="<", big=False, pixels=PIXELS, **changes):
    """A page of one strip or, with `tile`, of tiles; other `changes` are tags or their counts."""
    tile, dtype = changes.pop("tile", None), changes.pop("dtype", "u2")
    pieces = [pixels]
    if tile:
        padded = np.pad(pixels, [(0, -n % tile) for n in pixels.shape])
        pieces = [
            padded[y : y + tile, x : x + tile]
            for y in range(0, len(padded), tile)
            for x in range(0, padded.shape[1], tile)
        ]
    data = [piece.astype(order + dtype).tobytes() for piece in pieces]
    word, many, room = ("Q", "Q", 8) if big else ("I", "H", 4)
    start = 16 if big else 8
    places = [start + sum(map(len, data[:k])) for k in range(len(data))]
    tags = {256: [pixels.shape[1]], 257: [len(pixels)], 258: [16], 259: [1], 262: [1], 277: [1]}
    if tile:
        tags |= {322: [tile], 323: [tile], 324: places, 325: [len(d) for d in data]}
    else:
        tags |= {273: places, 278: [len(pixels)], 279: [len(d) for d in data]}
    tags |= {int(tag[1:]): value for tag, value in changes.items() if tag.startswith("t")}
    body, entries, at = b"".join(data), b"", start + sum(map(len, data))
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > room:
            body += packed
            packed, at = struct.pack(order + word, at), at + len(packed)
        count = changes.get(f"c{tag}", len(values))
        entries += struct.pack(f"{order}HH{word}", tag, 4, count) + packed.ljust(room, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HH", 8, 0) if big else b""
    count = struct.pack(order + many, changes.get("entries", len(tags)))
    return head + struct.pack(order + word, at) + body + count + entries + bytes(room)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_strips_of_either_byte_order_are_read(order, big, tmp_path):
    image = read(tmp_path, tiff(order, big), "a.tif")
    assert np.array_equal(image.data[0, 0].numpy(), PIXELS)


@pytest.mark.parametrize("code", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("blank", [False, True], ids=["noise", "blank"])
def test_compressed_pictures_are_read(code, blank, tmp_path):
    """A blank one of 36 million numbers is packed as well as can be."""
    array = np.random.default_rng(0).integers(0, 2**16, (60, 50)).astype(np.uint16)
    array = np.zeros((6000, 6000), np.uint16) if blank else array
    out = io.BytesIO()
    Pillow.fromarray(array).save(out, "TIFF", compression=code)
    image = read(tmp_path, out.getvalue(), "a.tif")
    assert np.array_equal(image.data[0, 0].numpy(), array)


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_tiles_of_8_bits_are_read_and_of_16_refused(big, tmp_path):
    """SimpleITK gives the upper 8 bits of 16, without a word."""
    image = read(tmp_path, tiff(big=big, tile=16, dtype="u1", t258=[8]), "a.tif")
    assert np.array_equal(image.data[0, 0].numpy(), PIXELS)
    with pytest.raises(ValueError, match="has 16 bits a pixel, of which SimpleITK reads 8"):
        read(tmp_path, tiff(big=big, tile=16), "a.tif")


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t257": [2**31 - 1], "t278": [2**31 - 1]}, "header claims 25,769,803,764 bytes"),
        (
            {"t257": [2**24], "t278": [1], "t259": [5]},
            "claims 16,777,216 strips or tiles",
        ),
        ({"t256": [2**31 - 1], "t259": [8]}, "header claims 21,474,836,470 bytes of numbers"),
        ({"t277": [60000], "t259": [5], "t256": [600]}, "header claims 360,000,000 bytes of num"),
        ({"tile": 16, "t323": [2**30], "t259": [5]}, "header claims 34,359,738,368 bytes of num"),
        ({"tile": 16, "t322": [0]}, "its pages, strips or tiles are empty"),
        ({"c273": 2**30}, "tag 273 claims 4,294,967,296 bytes, the file has"),
        ({"entries": 60000}, r"its directory at byte \d+ claims 60,000 entries"),
    ],
    ids=["length", "strips", "width", "samples", "tiles", "no tiles", "tag", "directory"],
)
def test_a_tiff_file_claims_no_more_than_it_holds(changes, message, big, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, tiff(big=big, **changes), "a.tif")


def test_directories_in_a_circle_end(tmp_path):
    content = bytearray(tiff())
    content[-4:] = content[4:8]
    with pytest.raises(ValueError, match="directories overlap or go in a circle"):
        read(tmp_path, bytes(content), "a.tif")


# MetaImage and NRRD


def meta(folder, name="a.mhd", data="a.raw", **changes):
    fields = {"NDims": "3", "BinaryData": "True", "DimSize": "6 5 2", "ElementType": "MET_SHORT"}
    fields |= changes | {"ElementDataFile": data}
    (folder / "a.raw").write_bytes(bytes(120))
    (folder / name).write_text("".join(f"{key} = {value}\n" for key, value in fields.items()))
    return folder / name


@pytest.mark.parametrize(
    "data", ["a.raw", "LIST\na.raw\nb.raw", "LIST 2D\na.raw\nb.raw", "s%d.raw 1 2 1"]
)
def test_numbers_beside_a_header_are_read(data, tmp_path):
    for name in ("b.raw", "s1.raw", "s2.raw"):
        (tmp_path / name).write_bytes(bytes(60))
    path = meta(tmp_path, data=data)
    (tmp_path / "a.raw").write_bytes(bytes(120 if data == "a.raw" else 60))
    assert read_image(path).shape == (6, 5, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NDims": "2000000000"}, "NDims must be 2 to 4, is 2000000000"),
        ({"NDims": "-1"}, "NDims must be 2 to 4, is -1"),
        ({"Name": "x" * 300}, "its header is not lines of text"),
        ({"Name": ":=" + "x" * 300}, "its header is not lines of text"),  # NRRD's, of any length
        ({"data": "%s%s%s%n"}, "names %s%s%s%n as the file of its numbers: a pattern"),
        ({"data": "a%20b.raw"}, "names a%20b.raw as the file of its numbers: a pattern, not read"),
        ({"data": "a%20s.raw"}, "names a%20s.raw as the file of its numbers: a pattern"),
        ({"data": "a%9999b.raw"}, "names a%9999b.raw as the file of its numbers: a pattern"),
        ({"data": "a%d.raw 1 5 0"}, "names a%d.raw 1 5 0 as the file of its numbers"),
        ({"data": "none.raw"}, "names none.raw as the file of its numbers: there is none"),
        (
            {"DimSize": "600 500 400"},
            "claims 120,000,000 bytes of numbers, the file has 120",
        ),
        ({"DimSize": "600 500 400", "CompressedData": "True"}, "the file has 120 compressed"),
    ],
)
def test_a_metaimage_header_does_no_harm(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_image(meta(tmp_path, **changes))


def test_a_name_with_a_percent_sign_is_no_pattern_to_nrrd(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((2, 5, 6), np.int16))
    sitk.WriteImage(image, tmp_path / "a%20b.nhdr")
    assert read_image(tmp_path / "a%20b.nhdr").shape == (6, 5, 2)


def test_raw_numbers_are_not_taken_for_packed_ones(tmp_path):
    """NRRD's library fills memory for all of them with zeros first."""
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 60 50 40\nencoding: raw\nendian: little\n"
    for name, more in (("a.nrrd", ""), ("a.nhdr", "data file: a.raw\n")):
        (tmp_path / "a.raw").write_bytes(bytes(500))
        (tmp_path / name).write_bytes((head + more + "\n").encode() + bytes(500))
        with pytest.raises(ValueError, match=r"claims 120,000 bytes of numbers, the file has \d+$"):
            read_image(tmp_path / name)

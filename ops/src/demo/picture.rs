//! Pictures, computed, and the little of PNG that they need: true colour, rows unfiltered, zlib blocks stored.
//! (PNG: W3C Recommendation, third edition; zlib: RFC 1950; deflate: RFC 1951.)

const WIDTH: u32 = 960;
const HEIGHT: u32 = 640;

pub struct Picture {
    pub name: &'static str,
    /// Colour at a point; x from 0 to 1.5 and y from 0 to 1, from the upper left.
    paint: fn(f32, f32) -> [f32; 3],
}

pub const PICTURES: [Picture; 6] = [
    Picture { name: "storehouse", paint: storehouse },
    Picture { name: "sunset", paint: sunset },
    Picture { name: "waves", paint: waves },
    Picture { name: "rings", paint: rings },
    Picture { name: "weave", paint: weave },
    Picture { name: "julia", paint: julia },
];

impl Picture {
    /// The picture as a PNG file.
    pub fn render(&self) -> Vec<u8> {
        let mut pixels = Vec::with_capacity((WIDTH * HEIGHT * 3) as usize);
        for row in 0..HEIGHT {
            for column in 0..WIDTH {
                let (x, y) = (column as f32 / HEIGHT as f32, row as f32 / HEIGHT as f32);
                pixels.extend((self.paint)(x, y).map(|c| (c.clamp(0.0, 1.0) * 255.0) as u8));
            }
        }
        encode_png(WIDTH, HEIGHT, &pixels)
    }
}

fn mix(a: [f32; 3], b: [f32; 3], t: f32) -> [f32; 3] {
    let t = t.clamp(0.0, 1.0);
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * t)
}

/// A white-walled storehouse with a tiled roof, at dusk.
fn storehouse(x: f32, y: f32) -> [f32; 3] {
    let (dx, wall) = ((x - 0.75).abs(), [0.93, 0.91, 0.86]);
    if y > 0.85 {
        return [0.25, 0.22, 0.2];
    }
    if y > 0.22 && y < 0.42 && dx < 0.12 + (y - 0.22) * 1.6 {
        let tile = ((x * 60.0).sin() * 0.5 + 0.5) * 0.08;
        return [0.2 + tile, 0.22 + tile, 0.27 + tile];
    }
    if y >= 0.42 && dx < 0.36 {
        let window = dx < 0.05 && (0.48..0.57).contains(&y);
        let door = dx < 0.09 && y > 0.66;
        let diamond = y > 0.7 && (((x + y) * 40.0).fract() < 0.12 || ((x - y + 9.0) * 40.0).fract() < 0.12);
        return match (window || door, diamond) {
            (true, _) => [0.16, 0.12, 0.1],
            (false, true) => wall,
            (false, false) if y > 0.7 => [0.3, 0.32, 0.36],
            (false, false) => wall,
        };
    }
    mix([0.1, 0.13, 0.3], [0.95, 0.6, 0.4], y * 1.1)
}

fn sunset(x: f32, y: f32) -> [f32; 3] {
    let hill = 0.78 + 0.06 * (x * 5.0).sin() + 0.03 * (x * 13.0 + 1.0).sin();
    if y > hill {
        return mix([0.12, 0.1, 0.2], [0.03, 0.03, 0.06], (y - hill) * 4.0);
    }
    let distance = (x - 0.95).hypot(y - 0.62);
    let sky = mix([0.2, 0.15, 0.45], [1.0, 0.55, 0.25], y * 1.2);
    if distance < 0.11 { [1.0, 0.9, 0.55] } else { mix([1.0, 0.8, 0.5], sky, (distance - 0.11) * 4.0) }
}

fn waves(x: f32, y: f32) -> [f32; 3] {
    let height = (x * 9.0 + (y * 14.0).sin()).sin() + (y * 21.0 - x * 4.0).sin();
    mix([0.03, 0.2, 0.42], [0.75, 0.92, 0.95], height * 0.25 + 0.5)
}

fn rings(x: f32, y: f32) -> [f32; 3] {
    let a = ((x - 0.5).hypot(y - 0.4) * 90.0).sin();
    let b = ((x - 1.0).hypot(y - 0.6) * 90.0).sin();
    mix([0.08, 0.05, 0.1], [0.95, 0.75, 0.3], (a + b) * 0.25 + 0.5)
}

/// Bamboo basket weave.
fn weave(x: f32, y: f32) -> [f32; 3] {
    let line = |t: f32| ((t * 12.0).fract() - 0.5).abs() < 0.06;
    let slope = 0.577;
    let on = line(x) || line(x * 0.5 + y / slope * 0.5 + 3.0) || line(x * 0.5 - y / slope * 0.5 + 3.0);
    if on { [0.92, 0.93, 0.9] } else { mix([0.1, 0.18, 0.4], [0.16, 0.3, 0.55], y) }
}

fn julia(x: f32, y: f32) -> [f32; 3] {
    let (mut a, mut b) = ((x - 0.75) * 2.2, (y - 0.5) * 2.2);
    let mut steps = 0;
    while a * a + b * b < 4.0 && steps < 48 {
        (a, b) = (a * a - b * b - 0.8, 2.0 * a * b + 0.156);
        steps += 1;
    }
    let t = steps as f32 / 48.0;
    [t * t, t, (1.0 - t) * 0.4 + t * 0.6]
}

fn encode_png(width: u32, height: u32, rgb: &[u8]) -> Vec<u8> {
    let row_len = width as usize * 3;
    let mut rows = Vec::with_capacity(rgb.len() + height as usize);
    for row in rgb.chunks_exact(row_len) {
        rows.push(0); // filter type: none
        rows.extend_from_slice(row);
    }
    let mut header = Vec::new();
    header.extend_from_slice(&width.to_be_bytes());
    header.extend_from_slice(&height.to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]); // 8 bits, true colour, deflate, adaptive filters, not interlaced
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    push_chunk(&mut png, b"IHDR", &header);
    push_chunk(&mut png, b"IDAT", &zlib_stored(&rows));
    push_chunk(&mut png, b"IEND", &[]);
    png
}

fn push_chunk(png: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    png.extend_from_slice(&(data.len() as u32).to_be_bytes());
    let begin = png.len();
    png.extend_from_slice(kind);
    png.extend_from_slice(data);
    let check = crc32(&png[begin..]);
    png.extend_from_slice(&check.to_be_bytes());
}

fn zlib_stored(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let mut blocks = data.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        let len = block.len() as u16;
        out.push(u8::from(blocks.peek().is_none()));
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&adler32(data).to_be_bytes());
    out
}

fn adler32(data: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    // 5552 is the most bytes after which neither sum can have overflowed.
    for part in data.chunks(5552) {
        for byte in part {
            a += u32::from(*byte);
            b += a;
        }
        a %= 65_521;
        b %= 65_521;
    }
    b << 16 | a
}

fn crc32(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc_table();
    !data.iter().fold(!0u32, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standards() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn a_picture_is_a_png_of_its_size() {
        let png = encode_png(2, 1, &[255, 0, 0, 0, 255, 0]);
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&png[12..16], b"IHDR");
        assert_eq!(&png[16..24], &[0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(&png[png.len() - 8..png.len() - 4], b"IEND");
    }
}

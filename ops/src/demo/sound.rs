//! Melodies as WAV files: plucked strings of a few sines, 16 bits, two channels.

use std::f32::consts::TAU;

const RATE: u32 = 44_100;
const BEAT_SECONDS: f32 = 0.42;

pub struct Melody {
    pub name: &'static str,
    /// Notes as half-tones from A4 (440 Hz) and beats.
    notes: &'static [(i8, f32)],
}

pub const MELODIES: [Melody; 4] = [
    // "Sakura Sakura", traditional.
    Melody {
        name: "sakura",
        notes: &[
            (0, 1.0),
            (0, 1.0),
            (2, 2.0),
            (0, 1.0),
            (0, 1.0),
            (2, 2.0),
            (0, 1.0),
            (2, 1.0),
            (3, 1.0),
            (2, 1.0),
            (0, 1.0),
            (2, 0.5),
            (0, 0.5),
            (-4, 2.0),
            (-5, 1.0),
            (-9, 1.0),
            (-5, 1.0),
            (-4, 1.0),
            (-5, 1.0),
            (-5, 0.5),
            (-9, 0.5),
            (-10, 2.0),
        ],
    },
    Melody {
        name: "scale",
        notes: &[
            (-9, 1.0),
            (-7, 1.0),
            (-5, 1.0),
            (-4, 1.0),
            (-2, 1.0),
            (0, 1.0),
            (2, 1.0),
            (3, 2.0),
            (2, 1.0),
            (0, 1.0),
            (-2, 1.0),
            (-4, 1.0),
            (-5, 1.0),
            (-7, 1.0),
            (-9, 2.0),
        ],
    },
    Melody {
        name: "bells",
        notes: &[
            (7, 1.0),
            (3, 1.0),
            (5, 1.0),
            (-2, 3.0),
            (-2, 1.0),
            (5, 1.0),
            (7, 1.0),
            (3, 3.0),
            (7, 1.0),
            (5, 1.0),
            (3, 1.0),
            (-2, 3.0),
        ],
    },
    Melody {
        name: "rain",
        notes: &[
            (3, 0.5),
            (0, 0.5),
            (5, 0.5),
            (-2, 0.5),
            (7, 0.5),
            (0, 0.5),
            (10, 1.0),
            (7, 0.5),
            (5, 0.5),
            (3, 0.5),
            (-2, 0.5),
            (0, 2.0),
            (-4, 0.5),
            (0, 0.5),
            (3, 0.5),
            (5, 0.5),
            (7, 1.0),
            (3, 3.0),
        ],
    },
];

impl Melody {
    /// The melody as a WAV file.
    pub fn render(&self) -> Vec<u8> {
        let mut samples = Vec::new();
        for (half_tones, beats) in self.notes {
            let hertz = 440.0 * 2f32.powf(f32::from(*half_tones) / 12.0);
            let count = (beats * BEAT_SECONDS * RATE as f32) as u32;
            samples.extend((0..count).map(|i| pluck(hertz, i as f32 / RATE as f32)));
        }
        encode_wav(&samples)
    }
}

/// A struck string at `seconds` after the stroke, between -1 and 1.
fn pluck(hertz: f32, seconds: f32) -> f32 {
    let attack = (seconds * 200.0).min(1.0);
    let partial = |n: f32, loud: f32| loud * (TAU * hertz * n * seconds).sin() * (-seconds * (1.5 + n)).exp();
    attack * (partial(1.0, 0.6) + partial(2.0, 0.25) + partial(3.0, 0.1))
}

/// Both channels carry the same samples; the right one comes a few milliseconds later.
fn encode_wav(samples: &[f32]) -> Vec<u8> {
    const DELAY: usize = 400;
    let data_len = (samples.len() * 4) as u32;
    let mut wav = Vec::with_capacity(44 + data_len as usize);
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + data_len).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt ");
    wav.extend_from_slice(&16u32.to_le_bytes());
    for field in [1u16, 2] {
        wav.extend_from_slice(&field.to_le_bytes()); // PCM, two channels
    }
    wav.extend_from_slice(&RATE.to_le_bytes());
    wav.extend_from_slice(&(RATE * 4).to_le_bytes());
    for field in [4u16, 16] {
        wav.extend_from_slice(&field.to_le_bytes()); // bytes a frame, bits a sample
    }
    wav.extend_from_slice(b"data");
    wav.extend_from_slice(&data_len.to_le_bytes());
    let as_pcm = |sample: f32| (sample * 32_000.0) as i16;
    for (i, left) in samples.iter().enumerate() {
        let right = i.checked_sub(DELAY).map_or(0.0, |i| samples[i]);
        wav.extend_from_slice(&as_pcm(*left).to_le_bytes());
        wav.extend_from_slice(&as_pcm(right).to_le_bytes());
    }
    wav
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wav_file_tells_its_own_length() {
        let wav = MELODIES[0].render();
        let field = |at: usize| u32::from_le_bytes(wav[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((&wav[..4], &wav[8..12]), (&b"RIFF"[..], &b"WAVE"[..]));
        assert_eq!((field(4) + 8, field(40) + 44), (wav.len(), wav.len()));
    }
}

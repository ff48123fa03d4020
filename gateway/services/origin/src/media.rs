//! Media types by file extension: what browsers play or show, and what providers commonly have.

/// The type of an object's name; `application/octet-stream` when the extension says nothing.
pub fn media_type_of(key: &str) -> &'static str {
    let file = key.rsplit('/').next().unwrap_or(key);
    let Some((_, extension)) = file.rsplit_once('.') else { return "application/octet-stream" };
    match extension.to_ascii_lowercase().as_str() {
        "txt" | "text" | "log" => "text/plain",
        "md" => "text/markdown",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "csv" => "text/csv",
        "js" | "mjs" => "text/javascript",
        "vtt" => "text/vtt",
        "json" => "application/json",
        "xml" => "application/xml",
        "pdf" => "application/pdf",
        "epub" => "application/epub+zip",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "zst" => "application/zstd",
        "wasm" => "application/wasm",
        "m3u8" => "application/vnd.apple.mpegurl",
        "mpd" => "application/dash+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "svg" => "image/svg+xml",
        "bmp" => "image/bmp",
        "tif" | "tiff" => "image/tiff",
        "wav" => "audio/wav",
        "mp3" => "audio/mpeg",
        "m4a" => "audio/mp4",
        "aac" => "audio/aac",
        "flac" => "audio/flac",
        "ogg" | "oga" | "opus" => "audio/ogg",
        "mp4" | "m4v" => "video/mp4",
        "webm" => "video/webm",
        "mkv" => "video/matroska",
        "mov" => "video/quicktime",
        "mpg" | "mpeg" => "video/mpeg",
        "ts" => "video/mp2t",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_extension_of_the_last_part_decides() {
        for (key, expected) in [
            ("a/b.PNG", "image/png"),
            ("song.wav", "audio/wav"),
            ("film.tar.gz", "application/gzip"),
            ("dir.mp4/readme", "application/octet-stream"),
            ("none", "application/octet-stream"),
            ("", "application/octet-stream"),
        ] {
            assert_eq!(media_type_of(key), expected, "{key}");
        }
    }
}

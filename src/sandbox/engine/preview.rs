//! Turns a picture into what a preview frame carries.
//!
//! Used by [`Step::tick`](super::execute::Step::tick). JPEG as ComfyUI's previews are; PNG if this build has no JPEG.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};

use super::socket::Preview;

/// ComfyUI's default `--preview-size`.
const MAX_SIDE: u32 = 512;

/// At most 512 pixels wide and high. `None` for a picture without pixels.
pub(super) fn encode(picture: RgbImage) -> Option<Preview> {
    let (width, height) = picture.dimensions();
    let mut picture = DynamicImage::ImageRgb8(picture);
    if width.max(height) > MAX_SIDE {
        picture = picture.thumbnail(MAX_SIDE, MAX_SIDE);
    }
    let write = |format| {
        let mut bytes = Cursor::new(vec![]);
        picture.write_to(&mut bytes, format).is_ok().then(|| bytes.into_inner())
    };
    let jpeg = write(ImageFormat::Jpeg).map(|bytes| Preview { format: 1, bytes });
    jpeg.or_else(|| write(ImageFormat::Png).map(|bytes| Preview { format: 2, bytes }))
}

"""The journal: records, segments, cursors. FORMAT.md specifies the bytes."""

"""What a series leaves behind: one module a file or kind of file, each a `pipeline.writer.Writer`."""

"""Drawing of documents: tables and plots, in Markdown, in HTML and on a terminal."""

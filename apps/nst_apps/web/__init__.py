"""`nst web`: a page for everybody who has a browser.

`server.py` knows what is served now, `studio.py` stylizes the visitors' images, `training.py` trains their own styles,
`app.py` is what the browser talks to, and `page/` is what it shows.
"""

"""`nst web`: a web page that stylizes images and the camera.

`server.py` tracks the served styles, `studio.py` stylizes the visitors' images, `training.py` trains their own styles,
`app.py` answers the browser's requests, and `page/` is the page.
"""

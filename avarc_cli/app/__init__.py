"""The interactive app: a page in the browser that classifies, explains, draws and learns classes (docs/app.md).

It needs `avarc[app]`: Starlette and uvicorn are imported by `server` only.
"""

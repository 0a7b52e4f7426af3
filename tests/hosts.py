"""How a local host misbehaves in tests of downloads."""


def break_off(handler, data):
    """Announce all, send 100 bytes and hang up; a request that continues is answered as usual."""
    if handler.headers.get("Range"):
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[:100])
    handler.wfile.flush()
    handler.close_connection = True
    return True

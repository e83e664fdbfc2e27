"""One TLS context for all HTTP clients of a process.

To load the certificates takes longer than most tests, and none of them speaks TLS.
"""

from functools import cache

import httpcore2

httpcore2.default_ssl_context = cache(httpcore2.default_ssl_context)

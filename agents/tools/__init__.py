"""Tools instead of guesses: arithmetic, programs, documents, LangChain and MCP tools."""

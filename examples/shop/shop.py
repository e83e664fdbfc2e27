"""A small shop: its orders and prices lie in shop.json, and three functions look things up."""

import json
import os
import re
from pathlib import Path

SHOP = json.loads(Path(os.environ.get("SHOP", Path(__file__).with_name("shop.json"))).read_text())
INSTRUCTIONS = "You answer questions about orders of a shop. Use the tools; do not guess."


def get_order(order: str) -> str:
    """Look up an order: what was ordered, and where it is.

    Args:
        order: number of the order, such as A17
    """
    found = SHOP["orders"].get(order)
    return json.dumps(found) if found else f"There is no order {order}."


def get_price(product: str) -> str:
    """Look up the price of one piece of a product, in euros.

    Args:
        product: name of the product
    """
    return str(SHOP["prices"].get(product, f"There is no product {product}."))


def calculate(expression: str) -> str:
    """Calculate with whole numbers.

    Args:
        expression: such as 3 * 19 + 2 * 40
    """
    if not re.fullmatch(r"[\d +*-]{1,80}", expression) or "**" in expression:
        return "Write whole numbers, +, - and * only."
    try:
        return str(eval(expression))  # noqa: S307 - digits, +, - and * only
    except SyntaxError:
        return f"{expression} is no expression."


TOOLS = {function.__name__: function for function in (get_order, get_price, calculate)}

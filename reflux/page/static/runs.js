import { empty, show } from "./dom.js";
export async function open(place) { show(place, empty("Soon", "…")); }

// What a person can do to a node: ask it again, or put another answer in its place.

export function actions() {
  return "";
}

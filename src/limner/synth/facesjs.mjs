// Draws faces with the npm package facesjs: a JSON array of seeds on standard input, one of SVG texts on standard output.
// Usage: node facesjs.mjs FOLDER   where FOLDER is one from which the package can be found.
// Exit status 3: it cannot be found there.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const SHIRTS = ["#7a8ca8", "#a86f5c", "#5d7f6a", "#c9b48a", "#4d5566", "#b8bcc4"];
const TRIM = "#e8e6e0";
const SHARE_WITHOUT_ACCESSORY = 0.9;

// A small generator of random numbers with 32 bits of state (mulberry32), for facesjs takes its own from Math.random.
function seeded(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

const require = createRequire(path.join(path.resolve(process.argv[2]), "package.json"));
let entry;
try {
  entry = require.resolve("facesjs");
} catch {
  process.exit(3);
}
const { generate, faceToSvgString } = await import(pathToFileURL(entry).href);
// The package's own folder, whichever file inside it is the entry.
const { version } = require(entry.slice(0, entry.lastIndexOf("facesjs") + "facesjs".length) + "/package.json");

let input = "";
for await (const chunk of process.stdin) input += chunk;
const drawings = JSON.parse(input).map((seed) => {
  Math.random = seeded(Math.imul(seed + 1, 2654435761));
  const shirt = SHIRTS[Math.floor(Math.random() * SHIRTS.length)];
  const fixed = { jersey: { id: "jersey3" }, teamColors: [shirt, shirt, TRIM] };
  if (Math.random() < SHARE_WITHOUT_ACCESSORY) fixed.accessory = { id: "none" };
  return faceToSvgString(generate(fixed, { gender: seed % 2 ? "female" : "male" }));
});
process.stdout.write(JSON.stringify({ version, drawings }));

// Parses each DTDL model named on the command line with Microsoft's parser (compiled to WASM in
// @digicatapult/dtdl-parser) and prints one JSON line for each: its entities, or what is wrong.
import { readFileSync } from "node:fs";
import { getInterop } from "@digicatapult/dtdl-parser";

const parser = await getInterop();
for (const path of process.argv.slice(2)) {
  try {
    const entities = Object.values(JSON.parse(parser.parse(readFileSync(path, "utf8"))));
    const named = entities.filter((e) => e.name).map((e) => [e.EntityKind, e.name]);
    console.log(JSON.stringify({ ok: true, named }));
  } catch (error) {
    console.log(JSON.stringify({ ok: false, error: String(error).slice(0, 500) }));
  }
}
process.exit(0);

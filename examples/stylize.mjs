// Stylize an image with fetch: Node 18 or newer, without packages. The function `stylize` also runs in a browser.
//
//     node stylize.mjs photo.ppm stylized.ppm http://127.0.0.1:8000 starry-night-fast
//     node stylize.mjs photo.ppm stylized.ppm http://127.0.0.1:8000 gallery 0.7 0.3    # weights of the model's two styles
import { readFileSync, writeFileSync } from "node:fs";

/** Return the stylized image's RGB bytes. `image` has width, height and RGB bytes as `pixels`, rows from the top. */
async function stylize(url, model, image, { weights = [], token } = {}) {
  const { width, height, pixels } = image;
  const inputs = [
    { name: "image", datatype: "UINT8", shape: [1, height, width, 3], parameters: { binary_data_size: pixels.length } },
  ];
  if (weights.length) {
    inputs.push({ name: "style_weights", datatype: "FP32", shape: [1, weights.length], data: weights });
  }
  const outputs = [{ name: "stylized", parameters: { binary_data: true } }];
  const header = new TextEncoder().encode(JSON.stringify({ inputs, outputs }));
  const answer = await fetch(`${url}/v2/models/${model}/infer`, {
    method: "POST",
    headers: {
      "Content-Type": "application/octet-stream",
      "Inference-Header-Content-Length": String(header.length),
      ...(token && { "nst-token": token }),
    },
    body: new Blob([header, pixels]),
    signal: AbortSignal.timeout(60_000),
  });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  const start = Number(answer.headers.get("Inference-Header-Content-Length"));
  return new Uint8Array(await answer.arrayBuffer(), start);
}

const [source, target, url, model, ...weights] = process.argv.slice(2);
try {
  // A PPM is three short lines of text, then the raw RGB bytes: ffmpeg -i photo.jpg photo.ppm
  const file = readFileSync(source);
  const lines = file.toString("latin1", 0, 64).match(/^P6\s+(\d+)\s+(\d+)\s+255\s/);
  if (!lines) throw new Error(`${source}: not a PPM of 8 bits (P6, 255)`);
  const [text, width, height] = [lines[0], Number(lines[1]), Number(lines[2])];
  const image = { width, height, pixels: file.subarray(text.length) };
  const options = { weights: weights.map(Number), token: process.env.NST_TOKEN };
  const stylized = await stylize(url, model, image, options);
  writeFileSync(target, Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), stylized]));
} catch (error) {
  console.error(`error: ${error.message}${error.cause ? `: ${error.cause.message}` : ""}`);
  process.exit(1);
}

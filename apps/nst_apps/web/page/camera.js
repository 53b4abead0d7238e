// The camera: sends frames over a WebSocket and shows them stylized.
import { $, make } from "./elements.js";
import { Refused } from "./server.js";
import { here, total } from "./state.js";

const MAX_WIDTH = 512; // of the frames, pixels
const MAX_UNDERWAY = 2; // frames: while one is stylized, the next is on its way; the others are never sent

export async function startCamera() {
  if (!navigator.mediaDevices) throw new Refused("Browsers allow the camera only on https:// pages and localhost.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, facingMode: "user" } });
  } catch (error) {
    throw new Refused(error.name === "NotFoundError" ? "No camera found." : `Cannot use the camera: ${error.message}.`);
  }
  here.camera = { stream, underway: 0, times: [], socket: null, small: document.createElement("canvas") };
  $("video").srcObject = stream;
  await $("video").play();
  connect(here.camera);
}

function connect(camera) {
  const address = new URL("live", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = new WebSocket(address);
  socket.binaryType = "blob";
  camera.socket = socket;
  camera.underway = 0;
  socket.onopen = () => {
    tellCamera();
    for (let frame = 0; frame < MAX_UNDERWAY; frame++) sendFrame(camera);
  };
  socket.onmessage = async ({ data }) => {
    if (camera !== here.camera) return;
    camera.underway--;
    if (typeof data === "string") {
      $("pace").textContent = JSON.parse(data).error;
      setTimeout(() => sendFrame(camera), 1000);
      return;
    }
    sendFrame(camera);
    const image = await createImageBitmap(data);
    Object.assign($("canvas"), { width: image.width, height: image.height });
    $("canvas").getContext("2d").drawImage(image, 0, 0);
    tellPace(camera);
  };
  socket.onclose = () => {
    if (camera !== here.camera) return;
    $("pace").textContent = "Lost the connection to the page's server; trying again.";
    setTimeout(() => camera === here.camera && connect(camera), 2000);
  };
}

function sendFrame(camera) {
  const video = $("video");
  if (camera !== here.camera || camera.socket.readyState !== WebSocket.OPEN || camera.underway >= MAX_UNDERWAY) return;
  camera.underway++;
  const width = Math.min(MAX_WIDTH, video.videoWidth);
  const height = Math.round((video.videoHeight * width) / video.videoWidth);
  Object.assign(camera.small, { width, height });
  camera.small.getContext("2d").drawImage(video, 0, 0, width, height);
  camera.small.toBlob((frame) => camera.socket.send(frame), "image/jpeg", 0.85);
}

function tellPace(camera) {
  const now = performance.now();
  camera.times = [...camera.times.filter((time) => now - time < 3000), now];
  const span = now - camera.times[0];
  if (span > 500) $("pace").textContent = `${((1000 * (camera.times.length - 1)) / span).toFixed(1)} frames/s`;
}

/** Tell the server how to stylize the frames. */
export function tellCamera() {
  if (here.camera?.socket?.readyState !== WebSocket.OPEN || !(total() > 0)) return;
  here.camera.socket.send(JSON.stringify({
    style: Object.fromEntries(here.weights),
    strength: $("strength").value / 100,
    preserve: $("preserve").checked,
  }));
}

export function stopCamera() {
  const camera = here.camera;
  if (!camera) return;
  here.camera = null;
  camera.socket?.close();
  for (const track of camera.stream.getTracks()) track.stop();
  $("video").srcObject = null;
  $("pace").textContent = "";
}

/** The camera's image as a JPEG file. */
export function snapshot() {
  const video = $("video");
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
}

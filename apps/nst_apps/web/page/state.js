// The page's state.
export const here = {
  state: { up: true, styles: [], jobs: [], training: null, limits: null },
  file: null, // the content image's file, to send it again
  content: null, // the server's record of it: {name, width, height}
  shown: null, // the name of the job in the frame
  weights: new Map(), // the chosen styles
  camera: null,
  styleImage: null, // the file of the style image to train
};

export const total = () => [...here.weights.values()].reduce((sum, weight) => sum + weight, 0);

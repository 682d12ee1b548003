// The page's numbers: base64 of gzip of (length of the header, header as JSON, arrays in byte planes).
export const page = { header: null, content: null };

const bytesOf = (text) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
};

// A packed text as {header, content}.
export const unpackedPage = async (text) => {
  const packed = bytesOf(text.trim());
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  return { header: JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length))), content: bytes.subarray(4 + length) };
};
export const load = async () => Object.assign(page, await unpackedPage(document.getElementById("data").textContent));

let halves = null;
// Value of each of the 65,536 numbers of float16: a look-up is faster than arithmetic, and not every browser has them.
const halfTable = () => {
  if (halves) return halves;
  halves = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent === 31 ? (fraction ? NaN : Infinity)
      : exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
    halves[bits] = bits & 0x8000 ? -size : size;
  }
  return halves;
};

const unpacked = new WeakMap();
// The array of a reference {at, type, shape}, unpacked when it is first asked for.
export const arrayOf = (reference) => {
  if (unpacked.has(reference)) return unpacked.get(reference);
  const count = reference.shape.reduce((a, b) => a * b, 1);
  const values = new Float32Array(count);
  const plane = (p) => page.content.subarray(reference.at + p * count, reference.at + (p + 1) * count);
  if (reference.type === "half") {
    const [high, low] = [plane(0), plane(1)], table = halfTable();
    for (let i = 0; i < count; i++) values[i] = table[(high[i] << 8) | low[i]];
  } else {
    const planes = [0, 1, 2, 3].map(plane);
    const word = new DataView(new ArrayBuffer(4));
    for (let i = 0; i < count; i++) {
      for (let p = 0; p < 4; p++) word.setUint8(p, planes[p][i]);
      if (reference.type === "single") values[i] = word.getFloat32(0);
      else values[i] = word.getUint32(0) === 0xffffffff ? NaN : word.getUint32(0);
    }
  }
  const array = { shape: reference.shape, values };
  unpacked.set(reference, array);
  return array;
};

// Row [a, b, c] of an array: its last axis, at most `length` numbers.
export const rowOf = (array, index, length = Infinity) => {
  const width = array.shape[array.shape.length - 1];
  const at = index.reduce((sum, i, axis) => sum * array.shape[axis] + i, 0);
  return array.values.subarray(at * width, at * width + Math.min(width, length));
};

export const finite = (values) => Array.from(values).filter(Number.isFinite);
export const largest = (values, least = 1e-9) => finite(values).reduce((a, b) => Math.max(a, b), least);
export const mean = (values) => {
  const seen = finite(values);
  return seen.length ? seen.reduce((a, b) => a + b, 0) / seen.length : NaN;
};

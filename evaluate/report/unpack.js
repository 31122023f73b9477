// The latents of an SAE: arrays in one compressed block, which is unpacked after the first paint.

const KINDS = { uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array, float32: Float32Array };

/** The block's arrays by name, and what its head says of them; packing.py writes it. */
async function unpack(element) {
  const packed = Uint8Array.fromBase64?.(element.textContent) // of browsers since 2025, and faster
    ?? Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(stream).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const arrays = {};
  for (const [name, { dtype, offset, size }] of Object.entries(head.arrays)) {
    arrays[name] = new KINDS[dtype](bytes, 4 + length + offset, size);
  }
  return new Latents(head, arrays);
}

class Latents {
  constructor(head, arrays) {
    Object.assign(this, head, arrays);
    this.count = this.numbers.length;
    this.lowered = this.vocabulary.map((token) => token.toLowerCase());
    this.place = new Map(Array.from(this.numbers, (number, at) => [number, at]));
  }

  density(at) {
    return this.rows ? this.fired[at] / this.rows : 0;
  }

  /** The contexts that a latent has: their peak, where they are, and their tokens. */
  contextsOf(at) {
    const found = [];
    for (let nth = at * this.contexts; nth < (at + 1) * this.contexts && this.values[nth] > 0; nth += 1) {
      found.push({ value: this.values[nth], document: this.documents[nth], position: this.positions[nth], tokens: this.windowOf(nth) });
    }
    return found;
  }

  windowOf(nth) {
    const tokens = [];
    for (let at = nth * this.window; at < (nth + 1) * this.window; at += 1) {
      if (this.tokens[at] === this.none) continue;
      tokens.push({ text: this.vocabulary[this.tokens[at]], share: this.shares[at] / 1000, peak: at - nth * this.window === this.before });
    }
    return tokens;
  }

  /** Tokens that a latent makes likelier (`top`) or unlikelier (`bottom`), with what it adds to their logits. */
  outputsOf(at, end) {
    const width = this[`${end}Width`];
    const logits = this[`${end}Logits`];
    return Array.from(this[end].subarray(at * width, (at + 1) * width), (token, nth) => ({ text: this.vocabulary[token], logit: logits[at * width + nth] }));
  }

  nearestOf(at) {
    const width = this.nearestWidth;
    return Array.from(this.nearest.subarray(at * width, (at + 1) * width), (number, nth) => ({ number, cosine: this.cosines[at * width + nth] }));
  }

  histogramOf(at) {
    const bins = this.edges.length - 1;
    return this.counts.subarray(at * bins, (at + 1) * bins);
  }
}

// Buys with the stock x402-fetch 1.x client: node fetch_v1.mjs URL. The wallet's key is in EVM_KEY.
import { createSigner, wrapFetchWithPayment } from 'x402-fetch';

const signer = await createSigner('base', process.env.EVM_KEY);
const answer = await wrapFetchWithPayment(fetch, signer, 1_000_000n)(process.argv[2]);
const settled = answer.headers.get('x-payment-response');
console.log(JSON.stringify({ status: answer.status, settled, body: await answer.json() }));

// Buys with the stock @x402/fetch 2.x client: node fetch_v2.mjs URL. The wallet's key is in EVM_KEY.
import { wrapFetchWithPayment, x402Client } from '@x402/fetch';
import { ExactEvmScheme } from '@x402/evm/exact/client';
import { privateKeyToAccount } from 'viem/accounts';

const client = new x402Client().register('eip155:*', new ExactEvmScheme(privateKeyToAccount(process.env.EVM_KEY)));
const answer = await wrapFetchWithPayment(fetch, client)(process.argv[2]);
const settled = answer.headers.get('payment-response');
console.log(JSON.stringify({ status: answer.status, settled, body: await answer.json() }));
